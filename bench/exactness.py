"""What the fast arithmetic costs: trained models, quantized, against a float32 evaluation of the very same weights.

Both engines read the same file, and the same weights written out as f32; how far the first is from the second is what
rounding of activations, products and cache does, which no file is to blame for.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, THREADS
from own_worker import Own
from peer import peer_worker
from pygpt.convert import convert_checkpoint
from pygpt.convert.requantize import requantize

from pygpt._lib import File
from pygpt.tokenizer import Tokenizer

NAME = "exactness"
WINDOWS = 16
EXAMPLE = ROOT / "examples" / "shakespeare"
MODELS = {  # the checkpoints that are here; K types need rows of a multiple of 256
    "bundled, 3.2M": (EXAMPLE / "ckpt.pt", ["q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "q4_1", "q3_k", "q2_k"]),
    "nanoGPT, 0.8M": (
        ROOT.parent / "shared" / "data" / "nanogpt-shakespeare" / "out" / "ckpt.pt",
        ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"],
    ),
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def read(engine: Any, path: Path, windows: np.ndarray) -> np.ndarray:
    """Log-probabilities after every id: (windows, n_ctx, n_vocab)."""
    engine("load", path=str(path), threads=THREADS, n_ctx=windows.shape[1])
    found = [np.frombuffer(base64.b64decode(engine("every", ids=ids.tolist())), np.float32) for ids in windows]
    return log_softmax(np.stack(found).reshape(*windows.shape, -1))


def measure(folder: Path, peer: Path) -> list[dict[str, Any]]:
    """Per model and type: KL divergence from float32 in nats per token and the loss, of both engines."""
    found, own = [], Own()
    text = (EXAMPLE / "input.txt").read_text(encoding="utf-8")
    with peer_worker(peer) as worker:
        engines = {"own": lambda do, **arguments: getattr(own, do)(**arguments), "peer": worker}
        for name, (checkpoint, types) in MODELS.items():
            for type in types if checkpoint.exists() else ():
                quantized, plain = folder / "quantized.gguf", folder / "plain.gguf"
                convert_checkpoint(checkpoint, quantized, type=type)
                requantize(quantized, plain, "f32")
                with File(quantized) as file:
                    n_ctx = file.keys["gpt2.context_length"]
                ids = Tokenizer.from_file(quantized).encode(text[-WINDOWS * n_ctx - 1 :])
                windows, targets = (np.array(part).reshape(WINDOWS, n_ctx) for part in (ids[:-1], ids[1:]))
                row: dict[str, Any] = {"model": name, "type": type, "tokens": windows.size}
                for who, engine in engines.items():
                    exact, fast = read(engine, plain, windows), read(engine, quantized, windows)
                    row[f"{who}_kl"] = float((np.exp(exact) * (exact - fast)).sum(-1).mean())
                    row[f"{who}_exact"], row[f"{who}_loss"] = (
                        float(-np.take_along_axis(p, targets[..., None], -1).mean()) for p in (exact, fast)
                    )
                found.append(row)
    return found


def write(found: list[dict[str, Any]]) -> str:
    text = """## What the fast arithmetic costs

Trained models on the end of the text that was held out from their training. KL: divergence in nats per token of a
file's logits from those of the same weights in float32, evaluated by the same engine with the f32 file. Loss: nats per
token, of the f32 file and of the quantized one.

| model | type | KL, llama.cpp | KL, pygpt | pygpt / llama.cpp | loss in f32 | loss, pygpt | loss, llama.cpp |
|---|---|---|---|---|---|---|---|
"""
    for row in found:
        ratio = row["own_kl"] / row["peer_kl"] if row["peer_kl"] else float("nan")
        text += f"| {row['model']} | {row['type']} | {row['peer_kl']:.2e} | {row['own_kl']:.2e} | {ratio:.2f} | "
        text += f"{row['own_exact']:.5f} | {row['own_loss']:.5f} | {row['peer_loss']:.5f} |\n"
    return text
