"""Numbers about a model: how well it predicts a text (perplexity) and how fast it is here (bench)."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import exp, inf, log
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from pygpt import _lib
from pygpt.generate import Model
from pygpt.model import IdModel
from pygpt.tokenizer import Tokenizer

WINDOW = 2048  # tokens that predict a text's next one: longer contexts hardly help and take quadratic time
CHUNK = 1 << 21  # logits at a time: 8 MB


class NotNumbers(_lib.BadFormat):
    """A model's logits are NaN or infinite."""


class Perplexity(NamedTuple):
    """nats: the sum over n_tokens predicted tokens, which stand for n_bytes of text; windows: how many were read."""

    nats: float
    n_tokens: int
    n_bytes: int
    windows: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        return exp(self.nats_per_token) if self.nats_per_token < 700 else inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / log(2) / self.n_bytes


def perplexity(
    model: Model,
    text: str,
    windows: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    unknown: str = "error",
    context: int | None = None,
) -> Perplexity:
    """Reads text in windows of `context` tokens without overlap, each of which predicts its tokens' successors.

    windows: only so many of them. The last one is shorter if the text is. progress: wraps the windows that are read.
    unknown: "skip" drops characters that the vocabulary lacks. context: by default the model's, but 2048 at most.
    Raises pygpt.Error for a text of less than two tokens, and for a context beyond the model's.
    """
    ids = array("i", model.tokenizer.encode(text, unknown=unknown))
    if len(ids) < 2:
        raise _lib.BadArgument(f"a text of {len(ids)} tokens has nothing to predict: it needs at least 2")
    n_ctx = min(model.info.n_ctx, WINDOW) if context is None else _lib.whole("context", context, 1)
    begins = range(0, len(ids) - 1, n_ctx)[:windows]
    total = sum(float(part.sum()) for part in losses(model, ids, n_ctx, progress(begins)))
    predicted = ids[1 : begins[-1] + n_ctx + 1]
    return Perplexity(total, len(predicted), max(n_text_bytes(model.tokenizer, predicted), 1), len(begins))


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Minus the log-likelihood of each of targets [n] under logits [n, n_vocab]: float64 [n]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets]
    return np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)) - chosen


def losses(
    model: IdModel,
    ids: array,
    n_ctx: int,
    begins: Iterable[int],
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray] = nats,
) -> Iterator[np.ndarray]:
    """The loss of each predicted token [.., some at a time]: windows of n_ctx tokens, which begin at `begins`, predict
    the tokens behind theirs. loss: of logits [n, n_vocab] and the ids [n] that they should have predicted."""
    step = max(16, min(n_ctx, CHUNK // model.info.n_vocab))
    logits = np.empty((step, model.info.n_vocab), np.float32)
    with model.session(n_ctx) as session:
        for begin in begins:
            session.rewind(0)
            targets = ids[begin + 1 : begin + 1 + n_ctx]
            for i in range(0, len(targets), step):
                wanted = targets[i : i + step]
                rows = logits[: len(wanted)]
                session.append(ids[begin + i : begin + i + len(wanted)], 0, rows)
                found = loss(rows, np.frombuffer(wanted, np.int32))
                if not np.isfinite(found).all():
                    raise NotNumbers(f"{model.path}: the model's logits are not numbers; its weights are damaged")
                yield found


def n_text_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> int:
    """Bytes of text that ids stand for."""
    return sum(len(tokenizer.token_bytes(id)) * n for id, n in Counter(ids).items())


def bench(model: IdModel, n_prompt: int, n_generate: int, repeats: int) -> dict[str, Any]:
    """{"results": [{"test": "pp512", "tokens_per_second": ..}, ..], "machine": {..}, "model": {..}}.

    pp: that many random tokens into an empty cache, with the last one's logits. tg: as many, one after the other, each
    with its logits and without sampling. Tests are cut to the model's context, as their names say. tokens_per_second is
    the median of `repeats` runs after one to warm up; the machine's limits are measured right before them.
    """
    info, n_ctx = model.info, model.info.n_ctx
    machine = {
        "isa": _lib.isa_current(),
        "cpus": _lib.cpu_count(),
        "threads": info.n_threads,
        "read_gb_per_second": round(_lib.measure_read(info.n_threads, 0.3) / 1e9, 2),
        "int8_gmac_per_second": round(_lib.measure_mac(info.n_threads, 0.3) / 1e9, 2),
    }
    results = []
    for kind, n in (("pp", min(n_prompt, n_ctx)), ("tg", min(n_generate, n_ctx))):
        if n:
            speeds = [n / seconds for seconds in _runs(model, kind, n, repeats)]
            results.append(
                {
                    "test": f"{kind}{n}",
                    "tokens_per_second": round(median(speeds), 2),
                    "slowest": round(min(speeds), 2),
                    "fastest": round(max(speeds), 2),
                    "repeats": repeats,
                }
            )
    products = sum(t.shape[0] * t.shape[1] for t in model.file().tensors.values() if _is_product(t))
    described = {
        "path": model.path,
        "architecture": info.architecture,
        "parameters": info.n_params,
        "bytes_per_token": info.bytes_per_token,
        "products_per_token": products,
    }
    return {"results": results, "machine": machine, "model": described}


def _is_product(tensor: _lib.TensorInfo) -> bool:
    """Do vectors pass through it? Tables are looked up."""
    return len(tensor.shape) == 2 and tensor.name.startswith("blk.") and not tensor.name.endswith("_embd.weight")


def _runs(model: IdModel, kind: str, n: int, repeats: int) -> Iterator[float]:
    """Seconds per run."""
    ids = array("i", random.Random(1).choices(range(model.info.n_vocab), k=n))
    logits = np.empty(model.info.n_vocab, np.float32)
    with model.session() as session:
        for i in range(repeats + 1):
            session.rewind(0)
            begin = perf_counter()
            if kind == "pp":
                session.append(ids, n - 1, logits)
            else:
                session.append_each(ids, logits)
            if i:
                yield perf_counter() - begin
