"""What the fast arithmetic costs: trained models, quantized, against a float32 evaluation of the very same weights.

Both engines read the same file. How far their logits are from those of the same weights written out as f32, evaluated
by pygpt in float32 throughout (the tests compare that with PyTorch), is what rounding of activations, products and
cache does, which no file is to blame for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from agreement import logits, own_engine
from machine import ROOT
from peer import peer_worker
from pygpt.convert import convert_checkpoint
from pygpt.convert.model_file import requantize

from pygpt._lib import File
from pygpt.tokenizer import Tokenizer

NAME = "exactness"
WINDOWS = 32
EXAMPLE = ROOT / "examples" / "shakespeare"
MODELS = {  # the checkpoints that are here; K types need rows of a multiple of 256
    "bundled, 3.2M": (EXAMPLE / "ckpt.pt", ["q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "q4_1", "q3_k", "q2_k"]),
    "nanoGPT, 0.8M": (
        ROOT.parent / "shared" / "data" / "nanogpt-shakespeare" / "out" / "ckpt.pt",
        ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"],
    ),
}


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def read(engine: Any, path: Path, windows: np.ndarray) -> np.ndarray:
    """Log-probabilities after every id: (windows, n_ctx, n_vocab)."""
    return log_softmax(np.stack([logits(engine, path, ids.tolist()) for ids in windows]))


def loss(log_p: np.ndarray, targets: np.ndarray) -> float:
    return float(-np.take_along_axis(log_p, targets[..., None], -1).mean())


def measure(folder: Path, peer: Path) -> list[dict[str, Any]]:
    """Per model and type: KL divergence of windows from float32 in nats per token and the loss, of both engines."""
    found = []
    text = (EXAMPLE / "input.txt").read_text(encoding="utf-8")
    with peer_worker(peer) as worker:
        engines = {"own": own_engine(), "peer": worker}
        for name, (checkpoint, types) in MODELS.items():
            for type in types if checkpoint.exists() else ():
                # names of their own: engines keep what they have loaded
                quantized, plain = folder / f"{len(found)}.gguf", folder / f"{len(found)}-f32.gguf"
                convert_checkpoint(checkpoint, quantized, type=type)
                requantize(quantized, plain, "f32")
                with File(quantized) as file:
                    n_ctx = file.keys["gpt2.context_length"]
                ids = Tokenizer.from_file(quantized).encode(text[-WINDOWS * n_ctx - 1 :])
                windows, targets = (np.array(part).reshape(WINDOWS, n_ctx) for part in (ids[:-1], ids[1:]))
                exact = read(engines["own"], plain, windows)
                row: dict[str, Any] = {"model": name, "type": type, "exact": loss(exact, targets)}
                for who, engine in engines.items():
                    fast = read(engine, quantized, windows)
                    row[f"{who}_kl"] = (np.exp(exact) * (exact - fast)).sum(-1).mean(-1).tolist()
                    row[f"{who}_loss"] = loss(fast, targets)
                found.append(row)
    return found


def write(found: list[dict[str, Any]]) -> str:
    text = """## What the fast arithmetic costs

Trained models on the end of the text that was held out from their training. KL: divergence in nats per token of an
engine's logits from those of the same weights, evaluated in float32. ratio: of the two means, with its 95 % bootstrap
interval over the windows of text; below 1 pygpt is the more exact. Loss: nats per token.

| model | type | KL, llama.cpp | KL, pygpt | ratio (95 %) | loss in f32 | loss, pygpt | loss, llama.cpp |
|---|---|---|---|---|---|---|---|
"""
    for row in found:
        own, peer = np.array(row["own_kl"]), np.array(row["peer_kl"])
        picks = np.random.default_rng(0).integers(len(own), size=(2000, len(own)))
        low, high = np.percentile(own[picks].mean(1) / peer[picks].mean(1), [2.5, 97.5])
        text += f"| {row['model']} | {row['type']} | {peer.mean():.2e} | {own.mean():.2e} | "
        text += f"**{own.mean() / peer.mean():.2f}** ({low:.2f} .. {high:.2f}) | "
        text += f"{row['exact']:.5f} | {row['own_loss']:.5f} | {row['peer_loss']:.5f} |\n"
    return text
