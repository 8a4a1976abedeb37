"""GGUF in, GGUF out: a model file is a source like any other, and keeps its keys."""

import tracemalloc

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf
from pygpt.convert import convert_checkpoint
from pygpt.convert.model_file import requantize

import pygpt
from pygpt._lib import File

LETTERS = "\n abcdefghijklmnopqrstuvwxyz,."


@pytest.fixture
def model(tmp_path):
    tensors = gpt2_tensors(len(LETTERS), 32, 64, 2, np.random.default_rng(1))
    keys = gpt2_keys(32, 64, 2) | character_keys(LETTERS) | {"pygpt.activation": "gelu_erf", "general.name": "letters"}
    return write_gguf(tmp_path / "m.gguf", tensors, keys | {"pygpt.assumptions": ["It was so."]})


def test_a_model_file_is_written_in_another_type_beside_itself(model):
    report = convert_checkpoint(model, type="q4_0")
    assert report.path == str(model.with_name("m-q4_0.gguf")) and report.source == "GGUF"
    with File(model) as before, File(report.path) as after:
        kept = set(before.keys) - {"general.file_type", "general.quantization_version"}
        assert {k: after.keys[k] for k in kept} == {k: before.keys[k] for k in kept}
        assert after.tensors["blk.0.ffn_up.weight"].type == "q4_0" and after.keys["general.file_type"] == 2
    assert report.assumptions == ["It was so."]


def test_what_its_type_costs_is_measured_on_text(model):
    report = convert_checkpoint(model, type="q4_0")
    assert report.proof.text == "pygpt's English sample" and report.proof.n_tokens > 2000
    costs = {c.type: c.nats for c in report.proof.costs}
    assert abs(costs["q8_0"]) < abs(costs["q4_0"]) and [c.type for c in report.proof.costs if c.is_written] == ["q4_0"]


def test_a_text_beside_any_checkpoint_is_what_it_is_tried_on(model):
    (model.parent / "input.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 50)
    assert convert_checkpoint(model).proof.text == "input.txt"


def test_float32_loses_nothing(model, tmp_path):
    report = convert_checkpoint(model, tmp_path / "again.gguf", type="f32")
    with pygpt.Model(model) as a, pygpt.Model(report.path) as b:
        assert np.array_equal(a.logits([1, 2, 3]), b.logits([1, 2, 3]))
    assert abs(report.proof.costs[0].nats) < 1e-9 and report.proof.costs[0].type == "f32"


def test_it_is_never_written_onto_itself_and_takes_no_foreign_options(model):
    before = model.read_bytes()
    with pytest.raises(pygpt.Error, match="is an input too"):
        convert_checkpoint(model, model)
    for options in ({"gelu": "erf"}, {"n_head": 3}, {"tokenizer": "gpt2"}):
        with pytest.raises(pygpt.Error, match="is not for GGUF"):
            convert_checkpoint(model, **options)
    assert model.read_bytes() == before


def test_the_command_says_what_it_did(model, pygpt):
    done = pygpt("convert", model, "--type", "q8_0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("GGUF (by its header): gpt2, ") and str(model.with_name("m-q8_0.gguf")) in lines[-1]


# ---- what is rounded already


@pytest.fixture
def wide(tmp_path):
    """As wide as types of 256 weights want it."""
    tensors = gpt2_tensors(len(LETTERS), 32, 256, 2, np.random.default_rng(1))
    return write_gguf(tmp_path / "w.gguf", tensors, gpt2_keys(32, 256, 2) | character_keys(LETTERS))


def same_bytes(a, b):
    with File(a) as x, File(b) as y:
        assert x.tensors == y.tensors
        return all(np.array_equal(x.data(name), y.data(name)) for name in x.tensors)


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "iq4_xs", "mxfp4"])
def test_weights_that_have_their_type_already_are_copied(wide, tmp_path, type):
    once, twice, other = (str(tmp_path / f"{name}.gguf") for name in ("once", "twice", "other"))
    convert_checkpoint(wide, once, type, proof=False)
    report = convert_checkpoint(once, twice, type, proof=False)
    assert same_bytes(once, twice)
    assert requantize(once, other, type).notes == report.notes and same_bytes(once, other)
    already = [line for line in report.notes if "rounded already" in line]
    assert len(already) == (0 if type in ("f32", "f16", "bf16") else 1)
    assert all(line.endswith("): they are copied as they are.") for line in already)


def test_only_what_changes_its_type_is_rounded_again(wide, tmp_path):
    small = convert_checkpoint(wide, tmp_path / "a.gguf", "q4_k_s", proof=False).path
    with File(small) as before, File(convert_checkpoint(small, type="q4_k_m", proof=False).path) as after:
        kept = {name for name, info in before.tensors.items() if after.tensors[name].type == info.type}
        assert all(np.array_equal(before.data(name), after.data(name)) for name in kept)
    assert {"token_embd.weight", "blk.1.ffn_up.weight"} <= kept and "blk.1.ffn_down.weight" not in kept


def test_costs_of_what_is_rounded_already_are_said_to_come_on_top(wide, tmp_path):
    assert convert_checkpoint(wide, tmp_path / "r.gguf", "q4_0", proof=False).notes == []
    smaller = convert_checkpoint(tmp_path / "r.gguf", tmp_path / "s.gguf", "q3_k_m", proof=False)
    assert smaller.notes == ["Its weights are rounded already (q4_0, q6_k): costs come on top of that."]
    larger = convert_checkpoint(tmp_path / "r.gguf", tmp_path / "l.gguf", proof=False)
    assert larger.notes == [*smaller.notes, "q8_0 makes the file larger than it was, and no more exact."]


@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_what_is_copied_must_be_finite_too(tmp_path, type):
    tensors = gpt2_tensors(len(LETTERS), 32, 64, 1, np.random.default_rng(1))
    path = write_gguf(tmp_path / "m.gguf", tensors, gpt2_keys(32, 64, 1) | character_keys(LETTERS), type)
    with File(path) as file:
        rows = bytes(file.data("blk.0.ffn_up.weight"))
    data = path.read_bytes()
    nan = np.full(1, np.nan, np.float32 if type == "f32" else np.float16).tobytes()  # of q8_0 the first block's scale
    path.write_bytes(data.replace(rows, nan + rows[len(nan) :]))
    with pytest.raises(pygpt.Error, match="blk.0.ffn_up.weight: expected finite numbers, found NaN or infinity"):
        convert_checkpoint(path, type=type, proof=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_memory_stays_small_where_bytes_are_copied(tmp_path):
    """One tensor at a time, of at most 4 MB here, and parts of it that are checked side by side."""
    tensors = gpt2_tensors(len(LETTERS), 32, 512, 8, np.random.default_rng(1))
    path = write_gguf(tmp_path / "m.gguf", tensors, gpt2_keys(32, 512, 8) | character_keys(LETTERS))
    del tensors
    assert path.stat().st_size > 100e6
    tracemalloc.start()
    try:
        requantize(path, tmp_path / "out.gguf", "f32")
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


# ---- what is refused


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"split.count": 3, "split.no": 1}, "expected a whole model, found one of 3 files that it was split into"),
        ({"split.count": 2}, "found one of 2 files .*; merge them first, .* llama.cpp's llama-gguf-split --merge$"),
        ({"split.count": "2"}, "expected split.count to be a whole number from 0 to 65535, found '2'"),
        ({"split.count": 2.0}, "split.count to be a whole number .*, found 2.0"),
        ({"split.count": True}, "split.count to be a whole number .*, found True"),
        ({"split.count": [2, 2]}, "split.count to be a whole number .*, found a list"),
        ({"split.count": 1 << 31}, "split.count to be a whole number .*, found 2147483648"),
    ],
    ids=str,
)
def test_a_part_of_a_model_is_refused(tmp_path, keys, match):
    tensors = gpt2_tensors(len(LETTERS), 32, 64, 1, np.random.default_rng(1))
    path = write_gguf(tmp_path / "m.gguf", tensors, gpt2_keys(32, 64, 1) | character_keys(LETTERS) | keys)
    for convert in (convert_checkpoint, lambda path: requantize(path, tmp_path / "q.gguf", "q8_0")):
        with pytest.raises(pygpt.Error, match=match) as caught:
            convert(path)
        assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_model_that_was_merged_is_whole(tmp_path, count):
    tensors = gpt2_tensors(len(LETTERS), 32, 64, 1, np.random.default_rng(1))
    keys = gpt2_keys(32, 64, 1) | character_keys(LETTERS) | {"split.count": count}
    assert convert_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, keys), proof=False).n_params > 0


def test_a_vocabulary_alone_is_no_model(tmp_path):
    path = write_gguf(tmp_path / "v.gguf", {}, {"general.architecture": "gpt2"} | character_keys("abc"))
    with pytest.raises(pygpt.Error, match="holds no model, so there is nothing to convert"):
        convert_checkpoint(path)
