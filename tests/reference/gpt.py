"""The slow twin of the gpt2 architecture, in PyTorch, line by line as its paper and nanoGPT's forward pass have it.

No cache, no quantization, no cleverness: the engine's numbers are tested against it, the bench races it.
Parameters carry nanoGPT's names, so state_dict() is what nanoGPT would have saved. B, T, C, H: batch, time, width,
heads.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 64
    block_size: int = 32
    vocab_size: int = 65
    bias: bool = True
    tied: bool = True
    gelu: str = "gelu_erf"  # or "gelu_tanh"


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.n_head = c.n_head
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (m.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for m in self.c_attn(x).split(C, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.n_head)  # (B, H, T, T)
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(dim=3)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))


class FastAttention(Attention):
    """The same by PyTorch's fused kernel, which nanoGPT uses: what the bench races against."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (m.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for m in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class LayerNorm(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.n_embd))
        self.bias = nn.Parameter(torch.zeros(c.n_embd)) if c.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.approximate = "tanh" if c.gelu == "gelu_tanh" else "none"
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, c: Config, attention: type[Attention]) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = LayerNorm(c), attention(c), LayerNorm(c), FeedForward(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c: Config, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.config = c
        blocks = nn.ModuleList(Block(c, attention) for _ in range(c.n_layer))
        wte, wpe = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": blocks, "ln_f": LayerNorm(c)})
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tied:
            self.lm_head.weight = wte.weight

    def forward(self, ids: torch.Tensor, last: bool = False) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, vocab_size), or with last only those after the last id, (B, 1, vocab_size)."""
        t = self.transformer
        x = t.wte(ids) + t.wpe.weight[: ids.shape[1]]
        for block in t.h:
            x = block(x)
        x = t.ln_f(x)
        return self.lm_head(x[:, -1:] if last else x)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after every one of ids: (len(ids), vocab_size)."""
        return self(torch.tensor([ids]))[0]

    @torch.no_grad()
    def greedy(self, ids: list[int], n: int) -> list[int]:
        """n more ids, each the likeliest given the last block_size ones."""
        ids = list(ids)
        for _ in range(n):
            ids.append(int(self.logits(ids[-self.config.block_size :])[-1].argmax()))
        return ids[-n:]

    @torch.no_grad()
    def sample(self, ids: torch.Tensor, n: int, temperature: float, top_k: int) -> torch.Tensor:
        """nanoGPT's way of sampling: the whole cropped window again for every token. ids (1, T) -> (1, T + n)."""
        for _ in range(n):
            logits = self(ids[:, -self.config.block_size :], last=True)[:, -1] / temperature
            kth = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
            p = logits.masked_fill(logits < kth, -math.inf).softmax(dim=1)
            ids = torch.cat((ids, torch.multinomial(p, 1)), dim=1)
        return ids


def random_gpt(c: Config, seed: int = 0, attention: type[Attention] = Attention, sharpness: float = 3.0) -> GPT:
    """A GPT whose every part matters: norms that are not 1, biases that are not 0, positions as large as tokens, scores
    that spread, so that leaving any of them out moves the logits.

    Greater sharpness: attention that looks at fewer places, and that any rounding moves more.
    """
    torch.manual_seed(seed)
    model = GPT(c, attention)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln_" in name:
                p.copy_(0.3 * torch.randn(p.shape) + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith("bias"):
                p.normal_(0, 0.3)
            elif "wte" in name or "wpe" in name:
                p.normal_(0, 0.5)
            else:
                p.normal_(0, (sharpness if "c_attn" in name else 1.0) / math.sqrt(p.shape[1]))
    return model.eval()


def checkpoint(model: GPT) -> dict:
    """What nanoGPT's training loop saves, without the optimizer."""
    fields = asdict(model.config)
    args = {k: fields[k] for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")}
    config = {"dataset": "none", "device": "cpu"}
    return {"model": model.state_dict(), "model_args": {**args, "dropout": 0.0}, "iter_num": 0, "config": config}
