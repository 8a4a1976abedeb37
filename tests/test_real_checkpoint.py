"""A checkpoint that nanoGPT's own code trained and saved, against what nanoGPT's own model computed from it."""

from pathlib import Path

import numpy as np
import pytest
from pygpt.convert import convert_checkpoint

import pygpt

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nanogpt-shakespeare"
pytestmark = pytest.mark.skipif(
    not DATA.exists(), reason=f"needs the trained checkpoint in {DATA.parent.name}/{DATA.name} beside the checkout"
)


@pytest.fixture(scope="module")
def expected():
    return np.load(DATA / "expected.npz")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """path(type) of the checkpoint converted to a type; the vocabulary is found without being named."""
    folder = tmp_path_factory.mktemp("real")

    def path(type: str) -> Path:
        out = folder / f"{type}.gguf"
        if not out.exists():
            convert_checkpoint(DATA / "out" / "ckpt.pt", out, type=type)
        return out

    return path


def val_loss(path: Path, expected) -> float:
    """Nats per token over the first val_windows windows of 64 tokens of the last tenth of the text."""
    text = (DATA / "data" / "shakespeare_char" / "input.txt").read_text(encoding="utf-8")
    with pygpt.Model(path) as model:
        ids = np.array(model.tokenizer.encode(text[int(0.9 * len(text)) :]))
        total = 0.0
        for i in range(int(expected["val_windows"])):
            window, following = ids[64 * i : 64 * i + 64], ids[64 * i + 1 : 64 * i + 65]
            logits = model.logits(window.tolist()).astype(np.float64)
            spread = logits.max(1) + np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
            total += (spread - logits[np.arange(64), following]).mean()
    return total / int(expected["val_windows"])


def test_f32_logits_equal_nanogpts(converted, expected):
    with pygpt.Model(converted("f32")) as model:
        assert np.abs(model.logits(expected["ids"].tolist()) - expected["logits"]).max() < 1e-3


def test_greedy_text_in_exact_mode_equals_nanogpts(converted, expected):
    with pygpt.Model(converted("f32")) as model:
        text = model.complete("\n", 300, temperature=0, on_full="exact")
        assert model.tokenizer.encode(text) == expected["greedy_from_newline"].tolist()


@pytest.mark.parametrize("type, within", [("f32", 0.0005), ("q8_0", 0.003), ("q4_0", 0.03)])
def test_quantization_costs_no_more_than_it_may(converted, expected, type, within):
    assert val_loss(converted(type), expected) == pytest.approx(float(expected["val_loss"]), rel=within)
