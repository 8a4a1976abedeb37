"""The architecture nanochat as the engine reads it: files whose keys or tensors contradict each other are refused."""

import gguf
import numpy as np
import pytest
from make_tiny import write_nanochat

import pygpt


class Edited:
    """The tiny nanochat with other keys, or without some tensors."""

    def __init__(self, path, keys=None, without=(), shapes=None):
        write_nanochat(str(path.with_suffix(".base")))
        reader = gguf.GGUFReader(path.with_suffix(".base"))
        writer = gguf.GGUFWriter(path, "nanochat")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture" or name in (keys or {}):
                continue
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        for name, value in (keys or {}).items():
            if value is not None:
                add[type(value)](name, value)
        for t in reader.tensors:
            if t.name not in without:
                data = (shapes or {}).get(t.name, t.data)
                writer.add_tensor(t.name, data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_the_tiny_model_runs_and_every_part_of_it_counts(tmp_path):
    ids = list(range(2, 26))
    Edited(tmp_path / "a.gguf")
    with pygpt.Model(tmp_path / "a.gguf") as model:
        whole = model.logits(ids)
        with model.session() as s:  # smear looks at the token before, across pieces
            pieces = [s.feed(ids[i : i + 5]) for i in range(0, len(ids), 5)]
        assert np.array_equal(pieces[0], whole[4]) and np.abs(pieces[-1] - whole[-1]).max() < 0.05
    assert np.abs(whole).max() < 15
    smear, mix = ["smear_gate.weight", "smear_lambda.weight"], ["resid_lambdas.weight", "x0_lambdas.weight"]
    values = ["blk.1.attn_value_embd.weight", "blk.1.attn_value_gate.weight"]
    for without in (smear, mix, values, ["backout_lambda.weight"]):
        Edited(tmp_path / "b.gguf", without=without)
        with pygpt.Model(tmp_path / "b.gguf") as model:
            assert np.abs(model.logits(ids) - whole).max() > 1e-4, without


def test_any_number_of_threads_gives_the_same_bits(tmp_path):
    Edited(tmp_path / "a.gguf")
    ids = list(range(2, 32))
    found = []
    for threads in (1, 2, 3):
        with pygpt.Model(tmp_path / "a.gguf", threads=threads) as model:
            found.append(model.logits(ids))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


WINDOW = "nanochat.attention.sliding_window"
ATTACKS = {
    "no window": ({"keys": {WINDOW: None}}, "expected a key nanochat.attention.sliding_window with 2 numbers"),
    "one window for two layers": ({"keys": {WINDOW: [9]}}, "sliding_window with 2 numbers"),
    "a window that is no number": ({"keys": {WINDOW: [1.5, 2.5]}}, "number 0 of key .*sliding_window"),
    "a negative window": ({"keys": {WINDOW: [4, -1]}}, "number 1 of key .*sliding_window"),
    "softcap 0": ({"keys": {"nanochat.final_logit_softcapping": 0.0}}, "expected more than 0"),
    "softcap NaN": ({"keys": {"nanochat.final_logit_softcapping": float("nan")}}, "not finite"),
    "no qk_scale": ({"keys": {"nanochat.attention.qk_scale": None}}, "has no key nanochat.attention.qk_scale"),
    "no layer for backout": ({"keys": {"nanochat.backout_layer": None}}, "has no key nanochat.backout_layer"),
    "no scale for gates": ({"keys": {"nanochat.value_gate_scale": None}}, "has no key nanochat.value_gate_scale"),
    "backout behind the last layer": ({"keys": {"nanochat.backout_layer": 2}}, "expected 0 to 1"),
    "an odd head": ({"keys": {"nanochat.attention.key_length": 31}}, "even number|shape"),
    "3 heads of keys": ({"keys": {"nanochat.attention.head_count_kv": 3}}, "expected whole groups"),
    "half of smear": ({"without": ["smear_lambda.weight"]}, "1 of 2 tensors for smear"),
    "half of the mix": ({"without": ["x0_lambdas.weight"]}, "1 of 2 tensors for the mix"),
    "a gate without values": ({"without": ["blk.1.attn_value_embd.weight"]}, "1 of 2 tensors for value embeddings"),
    "no head": ({"without": ["output.weight"]}, "has no tensor output.weight"),
    "a wide smear gate": ({"shapes": {"smear_gate.weight": np.zeros(100, np.float32)}}, "smear_gate.weight has shape"),
    "lambdas of another depth": ({"shapes": {"resid_lambdas.weight": np.zeros(3, np.float32)}}, "resid_lambdas"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_contradicts_itself_is_refused_in_a_sentence(tmp_path, name):
    changes, match = ATTACKS[name]
    Edited(tmp_path / "a.gguf", **changes)
    with pytest.raises(pygpt.Error, match=match) as caught:
        pygpt.Model(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
