"""The engine computes what PyTorch computes: random models in which every part matters, converted and compared."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here: pip install torch==2.13.0")

from pygpt.convert import convert_checkpoint  # noqa: E402
from reference.gpt import Config, checkpoint, random_gpt  # noqa: E402

import pygpt  # noqa: E402
from pygpt._lib import isas  # noqa: E402

SHAPES = {
    "plain": Config(),
    "without biases": Config(bias=False),
    "tanh gelu": Config(gelu="gelu_tanh"),
    "head of its own": Config(tied=False),
    "heads of 8": Config(n_head=8, n_embd=64),
    "heads of 48": Config(n_head=2, n_embd=96),
    "one head, odd vocabulary, one layer": Config(n_head=1, n_layer=1, vocab_size=131),
    "width that no block divides": Config(n_head=3, n_embd=48),
    "odd number of blocks": Config(n_head=7, n_embd=224, block_size=20),
    "context beyond one batch": Config(block_size=300),
    "deep": Config(n_layer=7, n_embd=32),
}
# Largest difference in logits whose spread is about 4. Rounding makes 1e-4 of it, the other GELU 3e-3.
F32 = 5e-4


def converted(tmp_path, config: Config, type: str = "f32", sharpness: float = 3.0):
    """The PyTorch model and the path of the same model converted."""
    model = random_gpt(config, sharpness=sharpness)
    torch.save(checkpoint(model), tmp_path / "ckpt.pt")
    text = "".join(chr(0x100 + i) for i in range(config.vocab_size))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    out = tmp_path / f"{type}.gguf"
    convert_checkpoint(
        tmp_path / "ckpt.pt",
        out,
        type=type,
        text=tmp_path / "text.txt",
        gelu=config.gelu.removeprefix("gelu_"),
        proof=False,
    )
    return model, out


def some_ids(config: Config, n: int | None = None, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n or config.block_size).tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_every_position_equal_pytorchs(tmp_path, name):
    config = SHAPES[name]
    model, path = converted(tmp_path, config)
    ids = some_ids(config)
    with pygpt.Model(path) as engine:
        assert np.abs(engine.logits(ids) - model.logits(ids).numpy()).max() < F32


def test_the_other_gelu_is_seen(tmp_path):
    """Of all that a file could have wrong it moves the logits least: what the bound lets through would be nothing."""
    model, path = converted(tmp_path, SHAPES["plain"])
    other = random_gpt(SHAPES["tanh gelu"])
    ids = some_ids(SHAPES["plain"])
    with pygpt.Model(path) as engine:
        found = engine.logits(ids)
    assert np.abs(found - model.logits(ids).numpy()).max() < F32 < np.abs(found - other.logits(ids).numpy()).max()


@pytest.mark.parametrize("isa", [name for name, available in isas().items() if available])
@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_each_type_computes_with_the_weights_that_the_file_holds(tmp_path, monkeypatch, type, isa):
    """The twin gets the dequantized weights: what remains is the rounding of activations, which only q types do."""
    monkeypatch.setenv("PYGPT_ISA", isa)
    config = Config(n_embd=128, n_head=4)
    model, path = converted(tmp_path, config, type, sharpness=1)
    load_weights(model, path)
    ids = some_ids(config)
    with pygpt.Model(path) as engine:
        expected, found = model.logits(ids).numpy(), engine.logits(ids)
    assert np.abs(found - expected).max() < (0.5 if type.startswith("q") else F32)
    assert cosine(found, expected) > 0.999


def test_quantized_is_close_to_the_original_and_q8_0_closer_than_q4_0(tmp_path):
    config = Config(n_embd=128, n_head=4)
    ids, error = some_ids(config), {}
    for type in ("q8_0", "q4_0"):
        model, path = converted(tmp_path, config, type, sharpness=1)
        with pygpt.Model(path) as engine:
            error[type] = np.abs(engine.logits(ids) - model.logits(ids).numpy()).mean()
    assert error["q8_0"] < 0.1 < error["q4_0"] < 2


def test_tokens_fed_one_by_one_give_the_same_bits_as_all_at_once(tmp_path):
    config = replace(SHAPES["odd number of blocks"], block_size=40)
    for type in ("f32", "q8_0", "q4_0"):
        _, path = converted(tmp_path, config, type)
        ids = some_ids(config)
        with pygpt.Model(path) as engine, engine.session() as session:
            at_once = engine.logits(ids)
            one_by_one = np.stack([session.feed([id]) for id in ids])
        assert np.array_equal(at_once, one_by_one)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(tmp_path, threads):
    config = Config(n_embd=256, n_head=4, n_layer=3, block_size=64)
    _, path = converted(tmp_path, config, "q8_0")
    ids = some_ids(config)
    with pygpt.Model(path, threads=1) as one, pygpt.Model(path, threads=threads) as several:
        assert np.array_equal(one.logits(ids), several.logits(ids))


def test_greedy_text_past_the_context_equals_pytorchs_in_exact_mode(tmp_path):
    config = Config(block_size=24)
    model, path = converted(tmp_path, config)
    ids = some_ids(config, 5)
    with pygpt.Model(path) as engine:
        text = engine.complete(ids, 60, temperature=0, on_full="exact")
    assert text == "".join(chr(0x100 + id) for id in model.greedy(ids, 60))


def test_jump_mode_goes_on_from_the_last_half_of_the_context(tmp_path):
    config = Config(block_size=24)
    model, path = converted(tmp_path, config)
    ids = some_ids(config, 5)
    expected, window = [], list(ids)
    for _ in range(60):
        if len(window) > config.block_size:
            window = window[-config.block_size // 2 :]
        id = int(model.logits(window)[-1].argmax())
        expected.append(id)
        window.append(id)
    with pygpt.Model(path) as engine:
        assert engine.complete(ids, 60, temperature=0, on_full="jump") == "".join(chr(0x100 + id) for id in expected)


def load_weights(model, path) -> None:
    """Puts the file's weights, dequantized, into the PyTorch model."""
    from pygpt._lib import File, dequantize

    names = {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f"}
    parts = {
        "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
    }  # fmt: skip
    state = model.state_dict()
    with File(path) as file, torch.no_grad():
        for name, info in file.tensors.items():
            stem, _, kind = name.rpartition(".")
            if stem.startswith("blk."):
                _, layer, part = stem.split(".")
                stem = f"transformer.h.{layer}.{parts[part]}"
            target = state[f"{names.get(stem, stem)}.{kind}"]
            target.copy_(torch.from_numpy(dequantize(file.data(name), info.type)).reshape(target.shape))


def cosine(a, b) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
