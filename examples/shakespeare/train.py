"""Train a small GPT on Shakespeare, one character at a time, and save a checkpoint that pygpt converts.

    pip install torch==2.13.0 numpy
    python examples/shakespeare/train.py                # about an hour on two CPU cores
    pygpt convert examples/shakespeare/out/ckpt.pt && pygpt generate "ROMEO:" -m examples/shakespeare/out/ckpt.gguf

One file, read from top to bottom: the data, the model, the optimizer, the loop. Beside OUT/ckpt.pt it writes meta.pkl,
the vocabulary, and prints a line per evaluation. Parameter names and the dictionary that is saved follow nanoGPT's
layout, so nanoGPT's tools read the checkpoint too. B, T, C are batch size, sequence length and width; H is the number
of heads.
"""

import argparse
import copy
import math
import pickle
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------- the data


class Text:
    """A text as one long tensor of character ids: nine tenths to learn from, the last to be judged by."""

    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        self.characters = sorted(set(text))
        self.ids = {c: i for i, c in enumerate(self.characters)}
        data = torch.tensor([self.ids[c] for c in text])
        cut = int(0.9 * len(data))
        self.train, self.val = data[:cut], data[cut:]

    def random_batch(self, B: int, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """B random windows, and the same windows one character later: what the model should have said."""
        starts = torch.randint(len(self.train) - T, (B,))
        x = torch.stack([self.train[s : s + T] for s in starts])
        y = torch.stack([self.train[s + 1 : s + 1 + T] for s in starts])
        return x, y

    def val_windows(self, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Every window of the held-out text, side by side and without overlap."""
        n = (len(self.val) - 1) // T
        return self.val[: n * T].view(n, T), self.val[1 : n * T + 1].view(n, T)

    def save_meta(self, path: Path) -> None:
        meta = {"vocab_size": len(self.characters), "itos": dict(enumerate(self.characters)), "stoi": self.ids}
        path.write_bytes(pickle.dumps(meta))


# ---------------------------------------------------------------- the model


@dataclass
class Config:
    block_size: int = 256
    vocab_size: int = 65
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    dropout: float = 0.1
    bias: bool = False


class LayerNorm(nn.Module):
    """Each vector gets mean 0 and variance 1, then a learned size per channel (and offset, with bias)."""

    def __init__(self, C: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.bias = nn.Parameter(torch.zeros(C)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Every position asks (q) all earlier ones (k), and takes a weighted mean of what they offer (v)."""

    def __init__(self, c: Config):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.n_head, self.dropout = c.n_head, nn.Dropout(c.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, C/H)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class FeedForward(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(c.n_embd, c.bias), Attention(c)
        self.ln_2, self.mlp = LayerNorm(c.n_embd, c.bias), FeedForward(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c.vocab_size, c.n_embd),
                "wpe": nn.Embedding(c.block_size, c.n_embd),
                "drop": nn.Dropout(c.dropout),
                "h": nn.ModuleList(Block(c) for _ in range(c.n_layer)),
                "ln_f": LayerNorm(c.n_embd, c.bias),
            }
        )
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # what reads a character also writes it
        for name, p in self.named_parameters():
            if p.dim() == 2:  # the two that write into the residual start smaller
                depth = 2 * c.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(p, std=0.02 / math.sqrt(depth))

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, vocab_size)."""
        t = self.transformer
        x = t.drop(t.wte(ids) + t.wpe.weight[: ids.shape[1]])
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


# ---------------------------------------------------------------- the optimizer


def optimizers(model: GPT, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms.

    Muon takes equally long steps in every direction that a matrix can move in; it needs about half of AdamW's steps.
    """
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step: up during the first 100 steps, then down a straight line to 0."""
    return min((step + 1) / 100, (steps - step) / max(1, steps - 100))


# ---------------------------------------------------------------- the loop


@torch.no_grad()
def val_loss(model: GPT, text: Text, T: int) -> float:
    """Nats per character on the whole held-out text, in windows of T."""
    model.eval()
    x, y = text.val_windows(T)
    total = sum(
        F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(32), y.split(32), strict=True)
    )
    model.train()
    return total / y.numel()


def save(path: Path, model: GPT, config: Config, args: argparse.Namespace, step: int, loss: float) -> None:
    """Weights in half precision and the few facts that describe them; the optimizer's state is left out."""
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items()}
    weights = {k: v.half() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    torch.save(
        {
            "model": weights,
            "model_args": asdict(config),
            "iter_num": step,
            "best_val_loss": loss,
            "config": settings,
        },
        path,
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=Path, default=HERE / "input.txt", help="what to learn; any UTF-8 text")
    p.add_argument("--out", type=Path, default=HERE / "out", help="folder for ckpt.pt and meta.pkl")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--average", type=float, default=0.99, help="the saved weights are a running mean with this memory")
    p.add_argument("--seed", type=int, default=1337)
    args = p.parse_args()

    torch.manual_seed(args.seed)
    text = Text(args.text)
    config = Config(vocab_size=len(text.characters))
    model = GPT(config)
    average = copy.deepcopy(model)
    opts = optimizers(model, args.lr, args.weight_decay)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(text.train):,} characters to learn from, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        flush=True,
    )

    args.out.mkdir(parents=True, exist_ok=True)
    text.save_meta(args.out / "meta.pkl")
    best, started = math.inf, time.time()
    for step in range(args.steps + 1):
        if step % 250 == 0 or step == args.steps:
            loss = val_loss(average, text, config.block_size)
            print(f"step {step:5}  val {loss:.4f}  {time.time() - started:6.0f} s", flush=True)
            if loss < best:
                best = loss
                save(args.out / "ckpt.pt", average, config, args, step, loss)
        x, y = text.random_batch(args.batch, config.block_size)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float().flatten(0, 1), y.flatten())
        loss.backward()
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * schedule(step, args.steps)
            opt.step()
            opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mean, p in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(p, 1 - min(args.average, step / (step + 10)))


if __name__ == "__main__":
    main()
