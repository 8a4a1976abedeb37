"""Models of Llama's kind: the engine computes what the slow twin does, and refuses what it would compute wrongly."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_gguf
from reference.llama import Config, keys, logits, random_tensors

import pygpt
from pygpt._lib import isas
from pygpt.model import IdModel

SHAPES = {
    "llama": Config(),
    "as many heads of keys": Config(n_head_kv=4),
    "one head of keys": Config(n_head=6, n_head_kv=1, n_embd=96),
    "more queries per key than go together": Config(n_head=20, n_head_kv=1, n_embd=160),
    "tied": Config(tied=True),
    "heads wider than the model": Config(head_dim=24, n_embd=48),
    "a part of the head is turned": Config(n_rot=8),
    "biases everywhere": Config(biases=True, all_biases=True),
    "a window": Config(window=7),
    "a window of one": Config(window=1),
    "rope factors": Config(rope_factors=True, theta=5e5),
    "linear scaling": Config(scaling="linear"),
    "yarn": Config(scaling="yarn"),
    "yarn, longer heads": Config(scaling="yarn", n_embd=256, original=32, factor=2.0),
    "qwen2": Config("qwen2", biases=True, theta=1e6),
    "qwen2 with yarn and a window": Config("qwen2", biases=True, scaling="yarn", window=9),
    "qwen3": Config("qwen3", head_norms=True, head_dim=32),
    "context beyond one batch": Config(n_ctx=300, n_layer=1),
    "odd width": Config(n_embd=36, n_head=3, n_head_kv=3, n_ff=52),
}
# Largest difference in logits whose spread is about 4. Rounding of floats makes 2e-5 of it, leaving out any part 0.05.
F32 = 3e-4


def made(tmp_path, config: Config, type: str = "f32", **changes):
    tensors = random_tensors(config)
    return tensors, write_gguf(tmp_path / "llama.gguf", tensors, keys(config) | changes, type)


def some_ids(config: Config, n: int | None = None) -> list[int]:
    return np.random.default_rng(3).integers(0, config.n_vocab, n or config.n_ctx).tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_every_position_equal_the_twins(tmp_path, name):
    config = SHAPES[name]
    tensors, path = made(tmp_path, config)
    ids = some_ids(config)
    with IdModel(path) as model:
        assert np.abs(model.logits(ids) - logits(config, tensors, ids)).max() < F32


@pytest.mark.parametrize("name", ["llama", "qwen3", "a window", "more queries per key than go together"])
def test_one_by_one_gives_the_bits_of_all_at_once(tmp_path, name):
    config = SHAPES[name]
    for type in ("f32", "q8_0", "q4_0") if config.n_embd % 32 == 0 else ("f32",):
        _, path = made(tmp_path, config, type)
        ids = some_ids(config)
        for threads in (1, 2, 3):
            with IdModel(path, threads=threads) as model, model.session() as session:
                together = model.logits(ids)
                assert np.array_equal(together, [session.feed([id]) for id in ids])


@pytest.mark.parametrize(
    "part",
    ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"]
    + ["attn_q_norm.weight", "attn_k_norm.weight", "rope_freqs.weight", "attn_norm.weight", "ffn_norm.weight"],
)
def test_the_bound_sees_every_part(tmp_path, part):
    config = Config("qwen3", biases=True, all_biases=True, head_norms=True, rope_factors=True)
    tensors, path = made(tmp_path, config)
    ids = some_ids(config)
    name = part if part in tensors else f"blk.1.{part}"
    changed = tensors | {name: np.full_like(tensors[name], 0.0 if part.endswith("bias") else 1.0)}
    with IdModel(path) as model:
        assert np.abs(model.logits(ids) - logits(config, changed, ids)).max() > 10 * F32


@pytest.mark.parametrize(
    "change",
    [{"window": 8}, {"scaling": None}, {"factor": 4.2}, {"theta": 2e4}, {"architecture": "llama"}, {"eps": 1e-3}],
    ids=str,
)
def test_the_bound_sees_every_key(tmp_path, change):
    config = Config("qwen2", window=7, scaling="yarn")
    tensors, path = made(tmp_path, config)
    ids = some_ids(config)
    with IdModel(path) as model:
        difference = np.abs(model.logits(ids) - logits(replace(config, **change), tensors, ids)).max()
    assert difference > 5 * F32


@pytest.mark.parametrize("isa", [name for name, available in isas().items() if available])
def test_every_instruction_set_agrees(tmp_path, monkeypatch, isa):
    config = Config("qwen3", head_norms=True, n_embd=128, n_ff=256)
    tensors, path = made(tmp_path, config, "q8_0")
    ids = some_ids(config)
    monkeypatch.setenv("PYGPT_ISA", isa)
    with IdModel(path) as model:
        found, expected = model.logits(ids), logits(config, tensors, ids)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is longrope"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "factor is 0"),
        ({"llama.attention.head_count_kv": 3}, "whole groups"),
        ({"llama.attention.head_count_kv": 0}, "head_count_kv is 0"),
        ({"llama.attention.value_length": 8}, "keys of 16 and values of 8"),
        ({"llama.attention.key_length": 8, "llama.attention.value_length": 8}, "has shape"),
        ({"llama.rope.dimension_count": 5}, "even number"),
        ({"llama.rope.dimension_count": 32}, "dimension_count is 32"),
        ({"llama.rope.freq_base": 0.5}, "freq_base"),
        ({"llama.embedding_length": 128}, "has shape"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "expected 0 to 1"),
        ({"general.architecture": "mamba"}, "architecture is mamba"),
    ],
    ids=str,
)
def test_what_would_be_computed_wrongly_is_refused_by_name(tmp_path, change, sentence):
    _, path = made(tmp_path, Config(), **change)
    with pytest.raises(pygpt.Error, match=sentence):
        IdModel(path)


def test_a_tensor_that_nobody_knows_is_refused(tmp_path):
    config = Config()
    tensors = random_tensors(config) | {"blk.0.ffn_gate_inp.weight": np.ones((8, 64), np.float32)}
    path = write_gguf(tmp_path / "more.gguf", tensors, keys(config))
    with pytest.raises(pygpt.Error, match="has 22 tensors, of which llama knows 21"):
        IdModel(path)


def test_a_context_beyond_the_machines_memory_is_refused_with_its_size(tmp_path):
    config = Config()
    tensors = random_tensors(config)
    path = write_gguf(tmp_path / "long.gguf", tensors, keys(replace(config, n_ctx=1 << 24)))
    with IdModel(path) as model:
        with model.session() as session:  # the model's own context takes memory as it fills
            session.feed([1, 2, 3])
    layers = 4096
    wide = replace(config, n_layer=2, n_ctx=1 << 24, head_dim=1024, n_head=8, n_head_kv=8)
    path = write_gguf(tmp_path / "wide.gguf", random_tensors(wide), keys(wide))
    with IdModel(path) as model, pytest.raises(MemoryError, match="takes [0-9.]+ MB, and this machine has"):
        model.session(n_ctx=(1 << 24) - layers)
