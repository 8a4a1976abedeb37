"""The slow twin of llama2.c's Transformer, in PyTorch, and writers of every file that llama2.c makes.

Parameters carry llama2.c's names, so state_dict() is what its train.py saves. Every part matters: norms are far from 1,
queries and keys large enough that positions show. B, T, H, D: batch, time, heads, values per head.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MAGIC = 0x616B3432
KINDS_ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
KINDS_FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


@dataclass
class Config:
    """By default as stories260K, but for its layers."""

    dim: int = 64
    hidden_dim: int = 172
    n_layers: int = 2
    n_heads: int = 8
    n_kv_heads: int | None = 4
    vocab_size: int = 512
    max_seq_len: int = 32
    tied: bool = True
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def kv(self) -> int:
        return self.n_kv_heads or self.n_heads


class RMSNorm(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.eps, self.weight = c.eps, nn.Parameter(torch.ones(c.dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """x (B, T, H, D): values 2 j and 2 j + 1 of a head are a complex number, turned by position times frequency j."""
    T, D = x.shape[1], x.shape[3]
    angle = torch.arange(T).double()[:, None] * theta ** (-torch.arange(0, D, 2).double() / D)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None, :, None]
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:3], D // 2, 2)) * turn).reshape(x.shape)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c, head = c, c.dim // c.n_heads
        self.wq, self.wo = nn.Linear(c.dim, c.dim, bias=False), nn.Linear(c.dim, c.dim, bias=False)
        self.wk, self.wv = (nn.Linear(c.dim, c.kv * head, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        c, D = self.c, C // self.c.n_heads
        q = turned(self.wq(x).view(B, T, c.n_heads, D), c.theta)
        k = turned(self.wk(x).view(B, T, c.kv, D), c.theta)
        k, v = (m.repeat_interleave(c.n_heads // c.kv, dim=2) for m in (k, self.wv(x).view(B, T, c.kv, D)))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D)
        weights = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf).softmax(dim=3)
        return self.wo(torch.einsum("bhts,bshd->bthd", weights, v).reshape(B, T, C))


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(c.dim, c.hidden_dim, bias=False) for _ in range(2))
        self.w2 = nn.Linear(c.hidden_dim, c.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(c), FeedForward(c)
        self.attention_norm, self.ffn_norm = RMSNorm(c), RMSNorm(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        self.tok_embeddings, self.norm = nn.Embedding(c.vocab_size, c.dim), RMSNorm(c)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.output = nn.Linear(c.dim, c.vocab_size, bias=False)
        if c.tied:
            self.output.weight = self.tok_embeddings.weight

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """The logits after every one of ids: (len(ids), vocab_size)."""
        x = self.tok_embeddings(torch.tensor([ids]))
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))[0].numpy()


def random_model(c: Config | None = None, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(c or Config())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.copy_(1 + 0.3 * torch.randn(p.shape))
            elif name == "tok_embeddings.weight":
                p.normal_(0, 0.5)
            else:
                p.normal_(0, (2.0 if ".wq." in name or ".wk." in name else 1.0) / math.sqrt(p.shape[1]))
    return model.eval()


# ---- files


def checkpoint(model: Transformer, vocab_source: str | None = "custom", prefix: str = "") -> dict[str, Any]:
    """What train.py gives to torch.save, but for the optimizer's moments."""
    c = model.config
    args = {name: getattr(c, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")}
    config = {"out_dir": "out", "vocab_size": c.vocab_size, "init_from": "scratch"}
    if vocab_source:
        config["vocab_source"] = vocab_source
    return {
        "model": {prefix + name: w for name, w in model.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.95)}]},
        "model_args": {**args, "multiple_of": 4, "max_seq_len": c.max_seq_len, "dropout": 0.0},
        "iter_num": 100,
        "best_val_loss": torch.tensor(1.5),
        "config": config,
    }


def ordered(model: Transformer, version: int) -> list[tuple[str, np.ndarray]]:
    """Names and weights in the order of a .bin file, without the tables of version 0."""
    state = {name.removesuffix(".weight"): w.detach().numpy() for name, w in model.state_dict().items()}

    def layers(kind: str) -> list[str]:
        return [f"layers.{i}.{kind}" for i in range(model.config.n_layers)]

    kinds = [*KINDS_ATTENTION, "ffn_norm", *KINDS_FEED_FORWARD]
    names = ["tok_embeddings", *layers("attention_norm"), *(name for kind in kinds for name in layers(kind)), "norm"]
    if version:
        norms = [*layers("attention_norm"), *layers("ffn_norm"), "norm"]
        names = norms + [name for name in names if name not in norms]
    names += [] if model.config.tied else ["output"]
    return [(name, state[name]) for name in names]


def header(model: Transformer, sign: int = 1) -> bytes:
    c = model.config
    return struct.pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.kv, sign * c.vocab_size, c.max_seq_len)


def version_0(model: Transformer, table: bool = True) -> bytes:
    """table: False leaves zeros where cosines and sines are."""
    c, out = model.config, io.BytesIO()
    out.write(header(model, 1 if c.tied else -1))
    n = c.dim // c.n_heads // 2
    angle = np.arange(c.max_seq_len)[:, None] * c.theta ** (-np.arange(n) / n)
    for name, w in ordered(model, 0):
        if name == "output":
            continue
        out.write(w.astype("<f4").tobytes())
    for values in (np.cos(angle), np.sin(angle)):
        out.write((values * table).astype("<f4").tobytes())
    if not c.tied:
        out.write(ordered(model, 0)[-1][1].astype("<f4").tobytes())
    return out.getvalue()


def version_1(model: Transformer) -> bytes:
    begin = struct.pack("<Ii", MAGIC, 1) + header(model) + struct.pack("<B", model.config.tied)
    return begin.ljust(256, b"\0") + b"".join(w.astype("<f4").tobytes() for _, w in ordered(model, 1))


def version_2(model: Transformer, group: int = 64, scales_last: bool = False) -> bytes:
    """scales_last: as export.py had it for some days, before a program could read it."""
    while model.config.dim % group:
        group //= 2
    begin = struct.pack("<Ii", MAGIC, 2) + header(model) + struct.pack("<Bi", model.config.tied, group)
    out, late = io.BytesIO(), io.BytesIO()
    out.write(begin.ljust(256, b"\0"))
    for _, w in ordered(model, 2):
        if w.ndim == 1:
            out.write(w.astype("<f4").tobytes())
            continue
        q, scale = quantized(w, group)
        out.write(q.tobytes())
        (late if scales_last else out).write(scale.astype("<f4").tobytes())
    return out.getvalue() + late.getvalue()


def quantized(w: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 [n / group, group], and what each group is multiplied with."""
    groups = w.reshape(-1, group)
    scale = np.abs(groups).max(1) / np.float32(127)
    with np.errstate(invalid="ignore"):
        q = np.nan_to_num(np.round(groups / scale[:, None]))
    return q.astype(np.int8), scale


def rounded(model: Transformer, group: int = 64) -> Transformer:
    """The model as version 2 has it."""
    while model.config.dim % group:
        group //= 2
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                q, scale = quantized(p.numpy(), group)
                p.copy_(torch.from_numpy((q * scale[:, None]).reshape(p.shape)))
    return model


# ---- tokenizer


def tokenizer_bin(pieces: list[tuple[str, float]]) -> bytes:
    """tokenizer.bin of (text, score), as tokenizer.py exports it: texts with U+2581 for spaces, <s> and </s> as they
    are in tokenizer.model."""
    texts = [{"<s>": "\n<s>\n", "</s>": "\n</s>\n"}.get(text, text).replace("\u2581", " ") for text, _ in pieces]
    raw = [text.encode() for text in texts]
    out = struct.pack("<I", max(map(len, raw)))
    for data, (_, score) in zip(raw, pieces, strict=True):
        out += struct.pack("<fi", score, len(data)) + data
    return out


def byte_pieces(words: dict[str, float]) -> list[tuple[str, float]]:
    """A small vocabulary: what every one begins with, and these pieces with their scores."""
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    return special + [(f"<0x{b:02X}>", 0.0) for b in range(256)] + list(words.items())


def unpacked(data: bytes) -> list[tuple[bytes, float]]:
    """The pieces of a tokenizer.bin with their scores."""
    tokens, at = [], 4
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        tokens.append((data[at + 8 : at + 8 + size], score))
        at += 8 + size
    return tokens


def run_c_encode(data: bytes, text: str) -> list[int]:
    """The ids that run.c gives a text, from the bytes of a tokenizer.bin and its rules alone."""
    tokens = unpacked(data)
    pieces, scores = [piece for piece, _ in tokens], [score for _, score in tokens]
    place = {piece: id for id, piece in enumerate(pieces)}
    ids = [place[b" "]] if text else []
    for character in text:
        raw = character.encode()
        ids += [place[raw]] if raw in place else [byte + 3 for byte in raw]
    while True:
        joined = [place.get(pieces[a] + pieces[b]) for a, b in zip(ids, ids[1:], strict=False)]
        known = [(-scores[id], i, id) for i, id in enumerate(joined) if id is not None]
        if not known:
            return [1, *ids]
        _, i, id = min(known)
        ids[i : i + 2] = [id]


def save(path: Path, data: bytes | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        torch.save(data, path)
    return path
