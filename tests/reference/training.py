"""Trains the slow twins for a while, so that there are checkpoints whose losses mean something."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def train(
    model: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    ids: Sequence[int],
    n_ctx: int,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """AdamW for so many steps or seconds on all but the last tenth of ids; the mean loss of the last steps, in nats.

    forward: ids (B, T) -> logits (B, T, n_vocab). The rate rises over 50 steps and falls to a tenth as the time passes.
    """
    data = torch.tensor(ids[: len(ids) * 9 // 10])
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    begin, step, recent = time.monotonic(), 0, 0.0
    model.train()
    while (done := step / steps if steps else (time.monotonic() - begin) / (seconds or 1.0)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - 0.9 * done)
        starts = torch.randint(len(data) - n_ctx - 1, (batch,), generator=draw)
        rows = torch.stack([data[i : i + n_ctx + 1] for i in starts.tolist()])
        logits = forward(rows[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += (loss.item() - recent) * max(0.05, 1 / (step + 1))
        step += 1
    model.eval()
    return recent


def characters(text: str) -> tuple[list[str], list[int]]:
    """sorted(set(text)), and the text in their ids."""
    found = sorted(set(text))
    place: dict[str, Any] = {c: i for i, c in enumerate(found)}
    return found, [place[c] for c in text]
