"""GGUF in, GGUF out: a model file is a source like any other, and keeps its keys."""

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf
from pygpt.convert import convert_checkpoint

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


def test_a_vocabulary_alone_is_no_model(tmp_path):
    path = write_gguf(tmp_path / "v.gguf", {}, {"general.architecture": "gpt2"} | character_keys("abc"))
    with pytest.raises(pygpt.Error, match="holds no model, so there is nothing to convert"):
        convert_checkpoint(path)
