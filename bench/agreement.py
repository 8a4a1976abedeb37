"""Whether both engines compute the same: logits of every architecture and type, from the same files and ids."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import shapes
from machine import THREADS
from own_worker import Own
from peer import peer_worker
from pygpt.convert.model_file import requantize

NAME = "agreement"
ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
# As llama.cpp's quantizer calls them. Every matrix is of the type itself: mixtures would hide it.
TYPES = {
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k": "Q5_K_M",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_k": "Q4_K_M",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
    "iq4_nl": "IQ4_NL",
    "iq4_xs": "IQ4_XS",
    "mxfp4": "MXFP4_MOE",
    "q3_k": "Q3_K_M",
    "q2_k": "Q2_K",
    "bf16": "BF16",
    "f16": "F16",
}
IDS = 48


def own_engine() -> Any:
    """pygpt, called as the peer's worker is."""
    own = Own()
    return lambda do, **arguments: getattr(own, do)(**arguments)


def logits(engine: Any, path: Path, ids: list[int], **more: Any) -> np.ndarray:
    """After every id: (ids, n_vocab)."""
    engine("load", path=str(path), threads=THREADS, n_ctx=len(ids), **more)
    return np.frombuffer(base64.b64decode(engine("every", ids=ids)), np.float32).reshape(len(ids), -1).astype(float)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest of all positions."""
    return float(((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).min())


def measure(folder: Path, peer: Path) -> list[dict[str, Any]]:
    """Per architecture: in f32 the largest difference; per type the cosines, as write() says."""
    found, here = [], own_engine()
    with peer_worker(peer) as there:
        for arch in ARCHITECTURES:
            source, plain = folder / f"{arch}.gguf", folder / f"{arch}-f32.gguf"
            shapes.write(f"tiny-{arch}", source)
            requantize(source, plain, "f32")
            ids = np.random.default_rng(1).integers(0, shapes.SHAPES[f"tiny-{arch}"].n_vocab, IDS).tolist()
            a, b = logits(here, plain, ids), logits(there, plain, ids, exact_cache=True, flash="off")
            row: dict[str, Any] = {"arch": arch, "f32": float(abs(a - b).max()), "spread": float(a.std()), "types": {}}
            for type, theirs in TYPES.items():
                quantized, exact = folder / f"{arch}-{type}.gguf", folder / f"{arch}-{type}-f32.gguf"
                there("quantize", source=str(source), target=str(quantized), type=theirs, threads=THREADS, pure=True)
                requantize(quantized, exact, "f32")
                a, b, true = logits(here, quantized, ids), logits(there, quantized, ids), logits(here, exact, ids)
                row["types"][type] = [cosine(a, b), cosine(a, true), cosine(b, true)]
            found.append(row)
    return found


def write(found: list[dict[str, Any]]) -> str:
    text = f"""## Whether both compute the same

Small models of random weights, {IDS} random ids, the logits after each of them. f32 weights: the largest difference,
and how far the logits spread; llama.cpp's cache is f32 there, without flash attention. Types: the lowest cosine
between the two engines' logits, and in brackets that of pygpt and of llama.cpp with the same weights evaluated in
float32.

| type | {" | ".join(row["arch"] for row in found)} |
|---|{"---|" * len(found)}
"""
    differences = [f"{row['f32']:.1e} of {row['spread']:.2f}" for row in found]
    text += f"| f32 | {' | '.join(differences)} |\n"
    for type in TYPES:
        cosines = [row["types"][type] for row in found]
        text += f"| {type} | {' | '.join(f'**{c[0]:.5f}** ({c[1]:.5f}, {c[2]:.5f})' for c in cosines)} |\n"
    return text
