"""Files made by hand to break readers: attacks on record against engines like this one. Each gets one sentence."""

import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf

import pygpt
from pygpt._lib import File

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10
TYPE_F32, TYPE_Q8_0 = 0, 8


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def key(name: bytes, type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", type) + value


def array(type: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", type, count) + values


def tensor(name: bytes, dims: list[int], type: int = TYPE_F32, offset: int = 0, n_dims: int | None = None) -> bytes:
    n = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, type, offset)


def gguf(keys=(), tensors=(), data=b"", n_keys=None, n_tensors=None, version=3, alignment=32) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


ARCHITECTURE = key(b"general.architecture", STRING, string(b"gpt2"))
ALIGNMENT = b"general.alignment"
ATTACKS = {
    "empty file": b"",
    "three bytes": b"GGU",
    "magic alone": b"GGUF",
    "version 1": gguf(version=1),
    "version 4": gguf(version=4),
    "big-endian": gguf(version=0x03000000),
    "2^63 keys in 43 bytes": gguf(n_keys=2**63)[:24] + bytes(19),
    "2^63 tensors": gguf(n_tensors=2**63),
    "2^32 tensors in few bytes": gguf([ARCHITECTURE], n_tensors=2**32),
    "dimension 0": gguf([ARCHITECTURE], [tensor(b"a", [0, 4])]),
    "dimension 2^42 + 1": gguf([ARCHITECTURE], [tensor(b"a", [2**42 + 1])]),
    "dimension 2^63": gguf([ARCHITECTURE], [tensor(b"a", [2**63])]),
    "product wraps to a small number": gguf([ARCHITECTURE], [tensor(b"a", [2**33, 2**33])], bytes(64)),
    "product wraps to 0": gguf([ARCHITECTURE], [tensor(b"a", [2**32, 2**32])], bytes(64)),
    "bytes wrap though the product does not": gguf([ARCHITECTURE], [tensor(b"a", [2**31, 2**31])], bytes(64)),
    "bytes wrap after padding": gguf([ARCHITECTURE], [tensor(b"a", [2**61 - 1])], bytes(64)),
    "gigabytes in 160 bytes": gguf([ARCHITECTURE], [tensor(b"a", [2**30])], bytes(64)),
    "5 dimensions": gguf([ARCHITECTURE], [tensor(b"a", [1] * 5)], bytes(64)),
    "2^32 - 1 dimensions": gguf([ARCHITECTURE], [tensor(b"a", [1], n_dims=2**32 - 1)], bytes(64)),
    "no dimensions": gguf([ARCHITECTURE], [tensor(b"a", [])], bytes(64)),
    "row is no whole number of blocks": gguf([ARCHITECTURE], [tensor(b"a", [33], TYPE_Q8_0)], bytes(64)),
    "unknown type": gguf([ARCHITECTURE], [tensor(b"a", [32], 63)], bytes(64)),
    "type far beyond the table": gguf([ARCHITECTURE], [tensor(b"a", [32], 2**32 - 1)], bytes(64)),
    "type known by name only": gguf([ARCHITECTURE], [tensor(b"a", [256], 16)], bytes(256)),
    "alignment of the wrong type": gguf([ARCHITECTURE, key(ALIGNMENT, STRING, string(b"32"))]),
    "alignment in an array": gguf([ARCHITECTURE, key(ALIGNMENT, ARRAY, array(U32, 1, struct.pack("<I", 32)))]),
    "alignment 0": gguf([ARCHITECTURE, key(ALIGNMENT, U32, struct.pack("<I", 0))]),
    "alignment 48": gguf([ARCHITECTURE, key(ALIGNMENT, U32, struct.pack("<I", 48))]),
    "alignment 2^30": gguf([ARCHITECTURE, key(ALIGNMENT, U32, struct.pack("<I", 2**30))]),
    "string of 2^63 - 1 bytes": gguf([ARCHITECTURE, key(b"a", STRING, string(b"", 2**63 - 1))]),
    "string of 2^64 - 1 bytes": gguf([ARCHITECTURE, key(b"a", STRING, string(b"", 2**64 - 1))]),
    "array of 2^62 numbers": gguf([ARCHITECTURE, key(b"a", ARRAY, array(U32, 2**62))]),
    "array whose bytes wrap": gguf([ARCHITECTURE, key(b"a", ARRAY, array(U64, 2**61 + 1, bytes(8)))]),
    "array of 2^63 strings": gguf([ARCHITECTURE, key(b"a", ARRAY, array(STRING, 2**63))]),
    "array of arrays": gguf([ARCHITECTURE, key(b"a", ARRAY, array(ARRAY, 1, array(U8, 1, b"1")))]),
    "value of type 13": gguf([ARCHITECTURE, key(b"a", 13, bytes(8))]),
    "empty key": gguf([ARCHITECTURE, key(b"", U8, b"1")]),
    "zero in a key": gguf([ARCHITECTURE, key(b"a\0b", U8, b"1")]),
    "key of a megabyte": gguf([ARCHITECTURE, key(b"a" * 2**20, U8, b"1")]),
    "key twice": gguf([ARCHITECTURE, ARCHITECTURE]),
    "tensor twice": gguf([ARCHITECTURE], [tensor(b"a", [8]), tensor(b"a", [8], offset=32)], bytes(64)),
    "tensors overlap": gguf([ARCHITECTURE], [tensor(b"a", [16]), tensor(b"b", [8], offset=32)], bytes(64)),
    "tensors at one place": gguf([ARCHITECTURE], [tensor(b"a", [8]), tensor(b"b", [8])], bytes(64)),
    "tensor past the end": gguf([ARCHITECTURE], [tensor(b"a", [8], offset=64)], bytes(64)),
    "offset that wraps": gguf([ARCHITECTURE], [tensor(b"a", [8], offset=2**64 - 32)], bytes(64)),
    "offset off the alignment": gguf([ARCHITECTURE], [tensor(b"a", [8], offset=4)], bytes(64)),
}


def sentence_for(path: Path, open_file) -> str:
    with pytest.raises(pygpt.Error) as found, open_file(path):
        pass
    text = str(found.value)
    assert text.strip() and "\n" not in text and path.name in text
    return text


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_made_to_break_readers_gets_a_sentence(tmp_path, name):
    path = tmp_path / "attack.gguf"
    path.write_bytes(ATTACKS[name])
    assert sentence_for(path, File) == sentence_for(path, pygpt.Model)


def test_control_characters_in_names_do_not_reach_the_sentence(tmp_path):
    path = tmp_path / "attack.gguf"
    path.write_bytes(gguf([ARCHITECTURE], [tensor(b"\x1b[2J\nwoe", [0])]))
    assert "?[2J?woe" in sentence_for(path, File)


SHAPES = {"n_ctx": 16, "n_embd": 32, "n_layer": 1}


@pytest.mark.parametrize(
    "name, value",
    [
        ("gpt2.context_length", 2**31),
        ("gpt2.context_length", 17),
        ("gpt2.block_count", 2**30),
        ("gpt2.block_count", 0),
        ("gpt2.block_count", 2),
        ("gpt2.embedding_length", 64),
        ("gpt2.embedding_length", "wide"),
        ("gpt2.feed_forward_length", 2**31),
        ("gpt2.attention.head_count", 0),
        ("gpt2.attention.head_count", 3),
        ("gpt2.attention.layer_norm_epsilon", float("nan")),
        ("gpt2.attention.layer_norm_epsilon", 1),
        ("gpt2.attention.layer_norm_epsilon", -5.0),
        ("pygpt.activation", "relu"),
        ("pygpt.activation", 5),
    ],
)
def test_keys_that_contradict_the_tensors_get_a_sentence(tmp_path, name, value):
    keys = {**gpt2_keys(**SHAPES), name: value} | character_keys("abc")
    path = write_gguf(tmp_path / "attack.gguf", gpt2_tensors(3, 16, 32, 1, None), keys)
    sentence_for(path, pygpt.Model)


@pytest.mark.parametrize("missing", ["gpt2.context_length", "gpt2.attention.head_count", "gpt2.block_count"])
def test_a_missing_key_is_named(tmp_path, missing):
    keys = {k: v for k, v in gpt2_keys(**SHAPES).items() if k != missing} | character_keys("abc")
    path = write_gguf(tmp_path / "attack.gguf", gpt2_tensors(3, 16, 32, 1, None), keys)
    assert missing in sentence_for(path, pygpt.Model)


@pytest.mark.parametrize("missing", ["token_embd.weight", "blk.0.ffn_up.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path, missing):
    tensors = {k: v for k, v in gpt2_tensors(3, 16, 32, 1, None).items() if k != missing}
    path = write_gguf(tmp_path / "attack.gguf", tensors, gpt2_keys(**SHAPES) | character_keys("abc"))
    assert missing in sentence_for(path, pygpt.Model)


def test_weights_that_are_no_numbers_do_not_become_text(tmp_path):
    """One scale of one block; quantizing the activations must not lose the NaN."""
    tensors = gpt2_tensors(3, 16, 32, 1, np.random.default_rng(1))
    path = write_gguf(tmp_path / "nan.gguf", tensors, gpt2_keys(**SHAPES) | character_keys("abc"), "q8_0")
    with File(path) as file:
        block = file.data("blk.0.ffn_down.weight").tobytes()[:34]
    data = path.read_bytes()
    assert data.count(block) == 1
    path.write_bytes(data.replace(block, b"\0\x7e" + block[2:]))
    with pygpt.Model(path) as model, pytest.raises(pygpt.Error, match="not numbers"):
        model.complete("a", 5, seed=1)


def test_a_tensor_that_nothing_reads_is_refused(tmp_path):
    tensors = gpt2_tensors(3, 16, 32, 1, None) | {"blk.0.attn_qkv.biaX": np.ones(96)}
    path = write_gguf(tmp_path / "attack.gguf", tensors, gpt2_keys(**SHAPES) | character_keys("abc"))
    assert "cannot be left out" in sentence_for(path, pygpt.Model)
