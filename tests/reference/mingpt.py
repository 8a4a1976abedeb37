"""The slow twins of minGPT's GPT, in PyTorch: the layout since 2022-06-23, and the one before.

Parameters and buffers carry minGPT's names, so state_dict() is what its programs save. B, T, C, H: batch, time, width,
heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .lecture import randomise


@dataclass
class Config:
    n_vocab: int = 65
    n_ctx: int = 32
    n_embd: int = 48
    n_head: int = 3
    n_layer: int = 2
    gelu: str | None = None  # None: the layout's own; or "erf", "tanh"


class NewGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


def gelu(name: str) -> nn.Module:
    return nn.GELU() if name == "erf" else NewGELU()


def causal_mask(c: Config) -> torch.Tensor:
    return torch.ones(c.n_ctx, c.n_ctx).tril().view(1, 1, c.n_ctx, c.n_ctx)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int, mask: torch.Tensor) -> torch.Tensor:
    B, T, C = q.shape
    q, k, v = (x.view(B, T, n_head, C // n_head).transpose(1, 2) for x in (q, k, v))  # (B, H, T, C / H)
    scores = q @ k.transpose(2, 3) / math.sqrt(C // n_head)
    weights = scores.masked_fill(mask[:, :, :T, :T] == 0, -math.inf).softmax(dim=3)
    return (weights @ v).transpose(1, 2).reshape(B, T, C)


# ---- the layout since 2022-06-23


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(c.n_embd, 3 * c.n_embd), nn.Linear(c.n_embd, c.n_embd)
        self.register_buffer("bias", causal_mask(c))
        self.n_head = c.n_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(attend(*self.c_attn(x).split(x.shape[2], dim=2), self.n_head, self.bias))


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(c.n_embd), Attention(c), nn.LayerNorm(c.n_embd)
        up, down = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)
        self.mlp = nn.ModuleDict({"c_fc": up, "c_proj": down, "act": gelu(c.gelu or "tanh")})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(self.mlp.act(self.mlp.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        wte, wpe = nn.Embedding(c.n_vocab, c.n_embd), nn.Embedding(c.n_ctx, c.n_embd)
        blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": blocks, "ln_f": nn.LayerNorm(c.n_embd)})
        self.lm_head = nn.Linear(c.n_embd, c.n_vocab, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, n_vocab)"""
        t = self.transformer
        x = t.wte(ids) + t.wpe.weight[: ids.shape[1]]
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


# ---- the layout before


class OldAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.key, self.query, self.value, self.proj = (nn.Linear(c.n_embd, c.n_embd) for _ in range(4))
        self.register_buffer("mask", causal_mask(c))
        self.n_head = c.n_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(attend(self.query(x), self.key(x), self.value(x), self.n_head, self.mask))


class OldBlock(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd), OldAttention(c)
        up, down = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)
        self.mlp = nn.Sequential(up, gelu(c.gelu or "erf"), down, nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class OldGPT(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(c.n_vocab, c.n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, c.n_ctx, c.n_embd))
        self.blocks = nn.Sequential(*(OldBlock(c) for _ in range(c.n_layer)))
        self.ln_f = nn.LayerNorm(c.n_embd)
        self.head = nn.Linear(c.n_embd, c.n_vocab, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, n_vocab)"""
        x = self.tok_emb(ids) + self.pos_emb[:, : ids.shape[1]]
        return self.head(self.ln_f(self.blocks(x)))


def random_gpt(c: Config, old: bool = False, seed: int = 0, sharpness: float = 3.0) -> nn.Module:
    return randomise((OldGPT if old else GPT)(c), seed, sharpness)


TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def as_conv1d(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state_dict as of the day when its layers were Conv1D: matrices are [in, out]."""
    return {name: w.t().contiguous() if name.endswith(TRANSPOSED) else w for name, w in weights.items()}
