"""The slow twin of nanochat, in PyTorch, of any of its generations; and folders as its programs leave them.

No cache, no quantization. Parameters carry nanochat's names, so state_dict() is what nanochat saves. Every mechanism is
a method of its own, which a test can replace by a wrong one. B, T, C, H, G, D: batch, time, width, heads, heads of keys
and values, values per head.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPECIALS = (
    "<|bos|> <|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> "
    "<|python_start|> <|python_end|> <|output_start|> <|output_end|>"
).split()


@dataclass
class Config:
    sequence_len: int = 64
    vocab_size: int = 320
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4
    n_embd: int = 48
    window_pattern: str = "L"
    padded_vocab: int = 320
    # what changed over the months
    lambdas: bool = False  # of the residual stream and of the first x
    gate_channels: int = 0  # of the value embeddings' gates; 0: no value embeddings
    smear: bool = False  # and backout, which came with it
    rope_base: float = 10000.0
    qk_scale: float = 1.0
    gate_scale: float = 0.0
    softcap: float = 15.0
    short: str = "none"  # how long a short window is: "half", "third", "quarter"

    @property
    def windows(self) -> list[int]:
        """How far back each layer sees, itself not counted."""
        tile = 128
        T = self.sequence_len
        short = {
            "none": 1 << 30,
            "half": T // 2,
            "third": math.ceil(T / 3 / tile) * tile,
            "quarter": math.ceil(T / 4 / tile) * tile,
        }
        sizes = {"L": 1 << 30 if self.short == "none" else T, "S": short[self.short]}
        windows = [sizes[self.window_pattern.upper()[i % len(self.window_pattern)]] for i in range(self.n_layer)]
        return [*windows[:-1], sizes["L"]]

    def has_value_embedding(self, layer: int) -> bool:
        return self.gate_channels > 0 and layer % 2 == (self.n_layer - 1) % 2


GENERATIONS: dict[str, dict[str, Any]] = {"N0": {}, "N1": {"lambdas": True, "short": "half"}}
GENERATIONS["N2"] = GENERATIONS["N1"] | {"gate_channels": 32, "gate_scale": 2.0}
GENERATIONS["N2 softcap 20"] = GENERATIONS["N2"] | {"softcap": 20.0}
GENERATIONS["N3"] = GENERATIONS["N2"] | {
    "gate_channels": 12,
    "gate_scale": 3.0,
    "rope_base": 100000.0,
    "qk_scale": 1.15,
    "short": "third",
}
GENERATIONS["N4"] = GENERATIONS["N3"] | {"smear": True, "qk_scale": 1.2, "short": "quarter"}


def generation(name: str, **changes: Any) -> Config:
    return Config(**{**GENERATIONS[name], **changes})


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


class Attention(nn.Module):
    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.c, self.dim, self.window = c, c.n_embd // c.n_head, c.windows[layer]
        self.c_q = nn.Linear(c.n_embd, c.n_head * self.dim, bias=False)
        self.c_k = nn.Linear(c.n_embd, c.n_kv_head * self.dim, bias=False)
        self.c_v = nn.Linear(c.n_embd, c.n_kv_head * self.dim, bias=False)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=False)
        if c.has_value_embedding(layer):
            self.ve_gate = nn.Linear(c.gate_channels, c.n_kv_head, bias=False)

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, H, D): values i and i + D / 2 are turned, against the usual sense."""
        speed = self.c.rope_base ** (-torch.arange(0, self.dim, 2, dtype=x.dtype) / self.dim)
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * speed
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()), dim=-1)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return norm(self.rope(x)) * self.c.qk_scale

    def seen(self, T: int) -> torch.Tensor:
        """(T, T): does a query (row) see a key (column)?"""
        back = torch.arange(T)[:, None] - torch.arange(T)[None, :]
        return (back >= 0) & (back <= self.window)

    def add_values(self, v: torch.Tensor, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """v, value (B, T, G, D)"""
        gate = self.c.gate_scale * torch.sigmoid(self.ve_gate(x[..., : self.c.gate_channels]))  # (B, T, G)
        return v + gate.unsqueeze(-1) * value

    def forward(self, x: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
        B, T, C = x.shape
        q = self.heads(self.c_q(x).view(B, T, self.c.n_head, self.dim))
        k = self.heads(self.c_k(x).view(B, T, self.c.n_kv_head, self.dim))
        v = self.c_v(x).view(B, T, self.c.n_kv_head, self.dim)
        if value is not None:
            v = self.add_values(v, x, value.view(B, T, self.c.n_kv_head, self.dim))
        sharing = self.c.n_head // self.c.n_kv_head
        q, k, v = (m.transpose(1, 2) for m in (q, k.repeat_interleave(sharing, 2), v.repeat_interleave(sharing, 2)))
        scores = (q @ k.transpose(2, 3) / math.sqrt(self.dim)).masked_fill(~self.seen(T), -math.inf)  # (B, H, T, T)
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)) ** 2)


class Block(nn.Module):
    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(c, layer), FeedForward(c)

    def forward(self, x: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attn(norm(x), value)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config, V, C = c, c.padded_vocab, c.n_embd
        blocks = nn.ModuleList(Block(c, i) for i in range(c.n_layer))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, C), "h": blocks})
        self.lm_head = nn.Linear(C, V, bias=False)
        self.backout_layer = c.n_layer // 2
        if c.lambdas:
            self.resid_lambdas = nn.Parameter(torch.ones(c.n_layer))
            self.x0_lambdas = nn.Parameter(torch.zeros(c.n_layer))
        if c.smear:
            self.smear_gate = nn.Linear(24, 1, bias=False)
            self.smear_lambda, self.backout_lambda = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        if c.gate_channels:
            layers = [i for i in range(c.n_layer) if c.has_value_embedding(i)]
            kv = c.n_kv_head * C // c.n_head
            self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(V, kv) for i in layers})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return norm(self.transformer.wte(ids))

    def smear(self, x: torch.Tensor) -> torch.Tensor:
        """Each token takes a part of the one before it."""
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[:, 1:, :24]))
        return torch.cat((x[:, :1], x[:, 1:] + gate * x[:, :-1]), dim=1)

    def mix(self, x: torch.Tensor, x0: torch.Tensor, layer: int) -> torch.Tensor:
        return self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0

    def last(self, x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        return norm(x if kept is None else x - self.backout_lambda * kept)

    def cap(self, logits: torch.Tensor) -> torch.Tensor:
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, vocab_size)"""
        c, kept = self.config, None
        x = self.embed(ids)
        if c.smear:
            x = self.smear(x)
        x0 = x
        for i, block in enumerate(self.transformer.h):
            if c.lambdas:
                x = self.mix(x, x0, i)
            x = block(x, self.value_embeds[str(i)](ids) if c.has_value_embedding(i) else None)
            if c.smear and i == self.backout_layer:
                kept = x
        return self.cap(self.lm_head(self.last(x, kept))[..., : c.vocab_size])

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after every one of ids: (len(ids), vocab_size)."""
        return self(torch.tensor([ids]))[0]


def random_gpt(c: Config, seed: int = 0) -> GPT:
    """A model whose every part matters: lambdas far from 1 and 0, gates far from shut and open, logits in the bend of
    the soft cap, value embeddings as large as values."""
    torch.manual_seed(seed)
    model = GPT(c)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "resid_lambdas":
                p.uniform_(0.6, 1.4)
            elif name.endswith(("lambda", "x0_lambdas")):
                p.uniform_(0.4, 0.9)
            elif name == "lm_head.weight":
                p.normal_(0, 10 / math.sqrt(c.n_embd))
            elif name.endswith(("ve_gate.weight", "smear_gate.weight")):
                p.normal_(0, 0.5)
            elif name.endswith(("wte.weight",)) or name.startswith("value_embeds"):
                p.normal_(0, 1)
            else:
                p.normal_(0, 1 / math.sqrt(p.shape[1]))
    return model.eval()


# ---- files


def model_config(c: Config) -> dict[str, Any]:
    names = ["sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"]
    return {name: getattr(c, name) for name in names + ["window_pattern"] * (c.short != "none")}


def save(folder: Path, model: GPT, step: int = 650, weights: dict[str, Any] | None = None, **meta: Any) -> Path:
    """model_{step}.pt with its meta. meta: more of it; `...` leaves a value out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model_{step:06d}.pt"
    torch.save(model.state_dict() if weights is None else weights, path)
    values = {"step": step, "val_bpb": 0.8, "model_config": model_config(model.config)} | meta
    values = {key: value for key, value in values.items() if value is not ...}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(values, indent=2))
    return path


def train_ranks(texts: Iterable[str], n: int, pattern: str | None = SPLIT) -> dict[bytes, int]:
    """A byte-level BPE of n tokens, as tiktoken has them. Without a pattern tokens may hold anything."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from pygpt.vocabulary import BYTE_OF

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return {bytes(BYTE_OF[c] for c in token): id for token, id in tokenizer.get_vocab().items()}


def save_tokenizer(folder: Path, ranks: dict[bytes, int]) -> Any:
    """tokenizer.pkl as nanochat trains and saves it; the tiktoken.Encoding that is in it."""
    import tiktoken

    folder.mkdir(parents=True, exist_ok=True)
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    encoding = tiktoken.Encoding("rustbpe", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=specials)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return encoding
