"""The slow twin of the sampler: the order of steps that csrc/pygpt.h promises, in numpy and Python's integers."""

from __future__ import annotations

import numpy as np

M32, M64 = 2**32 - 1, 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011): four random 32-bit words for a counter and a key."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & M32, (a >> 32) ^ c[3] ^ k[1], a & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def uniform(seed: int, stream: int, draw: int) -> float:
    """In [0, 1), 53 bits."""
    c = philox((draw & M32, draw >> 32, stream & M32, stream >> 32), (seed & M32, seed >> 32))
    return ((c[1] << 32 | c[0]) >> 11) / 2**53


def probabilities(
    logits: np.ndarray,
    history: list[int] = (),
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    repeat_window: int = 64,
    banned: list[int] = (),
) -> np.ndarray:
    """What each id is chosen with, (n_vocab), after all the steps in their order."""
    x = logits.astype(np.float64).copy()
    for id in set(list(history)[-repeat_window:] if repeat_window else []):
        x[id] = x[id] / repeat_penalty if x[id] > 0 else x[id] * repeat_penalty
    x[list(banned)] = -np.inf
    if temperature == 0:
        return np.eye(len(x))[int(x.argmax())]
    if top_k and top_k < len(x):
        x[x < np.sort(x)[-top_k]] = -np.inf
    p = np.exp((x - x.max()) / temperature)
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        enough = int(np.searchsorted(p[order].cumsum(), top_p)) + 1
        p[order[enough:]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()
