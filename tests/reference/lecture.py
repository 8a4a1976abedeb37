"""The slow twins of the models of Karpathy's lecture "Let's build GPT", in PyTorch: its GPT and its bigram table.

Parameters and buffers carry the lecture's names, so state_dict() is what its readers save. What the weights do not say
is in the Config: the attention scale, and what may stand in ReLU's place. B, T, C, D: batch, time, width, a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    n_vocab: int = 65
    n_ctx: int = 32
    n_embd: int = 48
    n_head: int = 3
    n_layer: int = 2
    scale: str | float = "head"  # or "width", as before 2023-01-27, or the factor itself
    activation: str = "relu"  # or "gelu_erf", "gelu_tanh"

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def factor(self) -> float:
        return {"head": self.head_size**-0.5, "width": self.n_embd**-0.5}.get(self.scale, self.scale)


ACTIVATIONS = {"relu": nn.ReLU, "gelu_erf": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}


class Head(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(c.n_embd, c.head_size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.ones(c.n_ctx, c.n_ctx).tril())
        self.factor = c.factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        T = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(1, 2) * self.factor  # (B, T, T)
        return scores.masked_fill(self.tril[:T, :T] == 0, -math.inf).softmax(dim=2) @ self.value(x)  # (B, T, D)


class Heads(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c) for _ in range(c.n_head))
        self.proj = nn.Linear(c.n_head * c.head_size, c.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=2))


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        up, down = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)
        self.net = nn.Sequential(up, ACTIVATIONS[c.activation](), down, nn.Dropout(0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.sa, self.ffwd = Heads(c), FeedForward(c)
        self.ln1, self.ln2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class GPTLanguageModel(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(c.n_vocab, c.n_embd)
        self.position_embedding_table = nn.Embedding(c.n_ctx, c.n_embd)
        self.blocks = nn.Sequential(*(Block(c) for _ in range(c.n_layer)))
        self.ln_f = nn.LayerNorm(c.n_embd)
        self.lm_head = nn.Linear(c.n_embd, c.n_vocab)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, n_vocab)"""
        x = self.token_embedding_table(ids) + self.position_embedding_table.weight[: ids.shape[1]]
        return self.lm_head(self.ln_f(self.blocks(x)))


class BigramLanguageModel(nn.Module):
    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(n_vocab, n_vocab)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.token_embedding_table(ids)


@torch.no_grad()
def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """The logits after every one of ids: (len(ids), n_vocab)."""
    return model(torch.tensor([ids]))[0]


@torch.no_grad()
def sample(model: nn.Module, n: int, n_ctx: int, n_vocab: int, seed: int = 0) -> list[int]:
    """n ids, in windows of n_ctx that each begin anew, as they are evaluated."""
    torch.manual_seed(seed)
    ids = torch.randint(n_vocab, (-(-n // n_ctx), 1))
    while ids.shape[1] < n_ctx:
        p = model(ids)[:, -1].softmax(dim=1)
        ids = torch.cat((ids, torch.multinomial(p, 1)), dim=1)
    return ids.flatten()[:n].tolist()


def randomise(model: nn.Module, seed: int = 0, sharpness: float = 3.0) -> nn.Module:
    """Weights of which every part matters: norms that are not 1, biases that are not 0, positions as large as tokens,
    scores and logits that spread. Greater sharpness: attention that looks at fewer places."""
    torch.manual_seed(seed)
    scales = {"key.weight": sharpness, "query.weight": sharpness, "c_attn.weight": sharpness, "head.weight": 4.0}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part.startswith("ln") for part in name.split(".")):
                p.copy_(0.3 * torch.randn(p.shape) + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith("bias"):
                p.normal_(0, 0.3)
            elif "emb" in name or "wte" in name or "wpe" in name:
                p.normal_(0, 0.5)
            else:
                scale = next((scale for ending, scale in scales.items() if name.endswith(ending)), 1.0)
                p.normal_(0, scale / math.sqrt(p.shape[1]))
    return model.eval()


def random_gpt(c: Config, seed: int = 0, sharpness: float = 3.0) -> GPTLanguageModel:
    return randomise(GPTLanguageModel(c), seed, sharpness)
