"""The slow twin of the llama, qwen2 and qwen3 architectures, in numpy and double precision, as their papers have it.

No cache, no quantization. Tensors carry GGUF's names, so the same arrays are written to a file and evaluated here.
T, H, D: time, heads, values per head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass
class Config:
    architecture: str = "llama"
    n_vocab: int = 65
    n_ctx: int = 64
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 96
    head_dim: int | None = None  # by default n_embd / n_head
    n_rot: int | None = None  # by default head_dim
    theta: float = 10000.0
    tied: bool = False
    biases: bool = False  # of q, k and v
    all_biases: bool = False  # of the other projections too
    head_norms: bool = False
    window: int = 0
    rope_factors: bool = False
    scaling: str | None = None  # "linear" or "yarn"
    factor: float = 4.0
    original: int = 16  # context before yarn
    eps: float = 1e-5

    @property
    def dim(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def rot(self) -> int:
        return self.n_rot or self.dim


def keys(c: Config) -> dict[str, Any]:
    """The hyperparameters as GGUF has them; what is at its default is left out."""
    own = {
        "context_length": c.n_ctx,
        "embedding_length": c.n_embd,
        "block_count": c.n_layer,
        "feed_forward_length": c.n_ff,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_head_kv,
        "attention.layer_norm_rms_epsilon": c.eps,
        "rope.freq_base": c.theta,
    }
    if c.head_dim:
        own |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    if c.n_rot:
        own["rope.dimension_count"] = c.n_rot
    if c.window:
        own["attention.sliding_window"] = c.window
    if c.scaling:
        own |= {"rope.scaling.type": c.scaling, "rope.scaling.factor": c.factor}
    if c.scaling == "yarn":
        own["rope.scaling.original_context_length"] = c.original
    return {"general.architecture": c.architecture} | {f"{c.architecture}.{name}": value for name, value in own.items()}


def random_tensors(c: Config, seed: int = 0, sharpness: float = 2.0) -> Tensors:
    """Weights of which every part matters; greater sharpness makes attention look at fewer places."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return random.normal(0, scale / math.sqrt(columns), (rows, columns)).astype(np.float32)

    def vector(n: int, mean: float) -> np.ndarray:
        return random.normal(mean, 0.3, n).astype(np.float32)

    q, kv = c.n_head * c.dim, c.n_head_kv * c.dim
    t = {"token_embd.weight": random.normal(0, 1, (c.n_vocab, c.n_embd)).astype(np.float32)}
    for i in range(c.n_layer):
        b = f"blk.{i}."
        t[b + "attn_norm.weight"], t[b + "ffn_norm.weight"] = vector(c.n_embd, 1), vector(c.n_embd, 1)
        shapes = {"attn_q": (q, c.n_embd), "attn_k": (kv, c.n_embd), "attn_v": (kv, c.n_embd)}
        shapes |= {"attn_output": (c.n_embd, q), "ffn_gate": (c.n_ff, c.n_embd), "ffn_up": (c.n_ff, c.n_embd)}
        shapes |= {"ffn_down": (c.n_embd, c.n_ff)}
        for name, shape in shapes.items():
            t[f"{b}{name}.weight"] = matrix(*shape, scale=sharpness if name in ("attn_q", "attn_k") else 1.0)
            if c.all_biases or c.biases and name in ("attn_q", "attn_k", "attn_v"):
                t[f"{b}{name}.bias"] = vector(shape[0], 0)
        if c.head_norms:
            t[b + "attn_q_norm.weight"], t[b + "attn_k_norm.weight"] = vector(c.dim, 1), vector(c.dim, 1)
    t["output_norm.weight"] = vector(c.n_embd, 1)
    if not c.tied:
        t["output.weight"] = matrix(c.n_vocab, c.n_embd, 3)
    if c.rope_factors:
        t["rope_freqs.weight"] = np.linspace(1, 8, c.rot // 2, dtype=np.float32)
    return t


def rope_speeds(c: Config, t: Tensors) -> tuple[np.ndarray, float]:
    """Radians per position of each pair, and what the turned values are multiplied with (arXiv:2309.00071, 3.2-3.4)."""
    n = c.rot
    speed = c.theta ** (-2.0 * np.arange(n // 2) / n)
    if "rope_freqs.weight" in t:
        return speed / t["rope_freqs.weight"], 1.0
    if c.scaling == "linear":
        return speed / c.factor, 1.0
    if c.scaling == "yarn":

        def pair(turns: float) -> float:
            return n * math.log(c.original / (turns * 2 * math.pi)) / (2 * math.log(c.theta))

        low, high = max(0, math.floor(pair(32))), min(n - 1, math.ceil(pair(1)))
        slowed = np.clip((np.arange(n // 2) - low) / max(0.001, high - low), 0, 1)
        return speed / c.factor * slowed + speed * (1 - slowed), 1 + 0.1 * math.log(c.factor)
    return speed, 1.0


def rope(c: Config, t: Tensors, x: np.ndarray) -> np.ndarray:
    """x (T, H, D)"""
    speed, magnitude = rope_speeds(c, t)
    angle = np.arange(len(x))[:, None, None] * speed
    cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    halves = c.architecture != "llama"
    first = np.arange(c.rot // 2) * (1 if halves else 2)
    second = first + (c.rot // 2 if halves else 1)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def logits(c: Config, tensors: Tensors, ids: list[int]) -> np.ndarray:
    """The logits after every one of ids: (len(ids), n_vocab)."""
    t = {name: array.astype(np.float64) for name, array in tensors.items()}
    T = len(ids)
    x = t["token_embd.weight"][ids]
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = (distance >= 0) & ((distance < c.window) if c.window else True)

    for i in range(c.n_layer):

        def linear(name: str, x: np.ndarray, b: str = f"blk.{i}.") -> np.ndarray:
            return x @ t[f"{b}{name}.weight"].T + t.get(f"{b}{name}.bias", 0.0)

        y = rms_norm(x, t[f"blk.{i}.attn_norm.weight"], c.eps)
        q = linear("attn_q", y).reshape(T, c.n_head, c.dim)
        k, v = (linear(name, y).reshape(T, c.n_head_kv, c.dim) for name in ("attn_k", "attn_v"))
        if c.head_norms:
            q = rms_norm(q, t[f"blk.{i}.attn_q_norm.weight"], c.eps)
            k = rms_norm(k, t[f"blk.{i}.attn_k_norm.weight"], c.eps)
        q, k = rope(c, t, q), rope(c, t, k)
        k, v = (np.repeat(a, c.n_head // c.n_head_kv, axis=1) for a in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(c.dim)
        weights = np.exp(np.where(seen, scores, -np.inf) - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear("attn_output", np.einsum("hts,shd->thd", weights, v).reshape(T, -1))
        y = rms_norm(x, t[f"blk.{i}.ffn_norm.weight"], c.eps)
        gate = linear("ffn_gate", y)
        x = x + linear("ffn_down", gate / (1 + np.exp(-gate)) * linear("ffn_up", y))

    x = rms_norm(x, t["output_norm.weight"], c.eps)
    return x @ t.get("output.weight", t["token_embd.weight"]).T
