"""pygpt behind a pipe, doing what peer_worker.py does. `text` is what a user of a small model would call."""

from __future__ import annotations

import base64
import random
from array import array
from time import perf_counter

import numpy as np
import worker

import pygpt
from pygpt import _lib


class Own:
    """One model and one session at a time."""

    def __init__(self) -> None:
        self._path = self._model = self._session = None

    def load(self, path: str, threads: int, n_ctx: int, n_seq: int = 1) -> None:
        """A model, if it is another one, and a fresh session."""
        if (path, threads) != self._path:
            self._session = None
            self._model = pygpt.Model(path, threads)
            self._path = path, threads
        self._session = self._model.session(n_ctx)
        self._several = Several(self._model, n_seq, n_ctx) if n_seq > 1 else None
        self._logits = np.empty(self._model.info.n_vocab, np.float32)
        self._depth = 0
        self._random = random.Random(1)

    def pp(self, n: int, repeat: int = 1) -> float:
        """Seconds of reading n tokens into an empty cache."""
        total = 0.0
        for _ in range(repeat):
            self._session.rewind(0)
            ids = self._ids(n)
            begin = perf_counter()
            self._session.append(ids, n - 1, self._logits)
            total += perf_counter() - begin
        self._depth = n
        return total

    def tg(self, n: int, depth: int = 0, repeat: int = 1) -> float:
        """Seconds of n tokens one by one behind depth others, which stay in the cache for the next time."""
        total = 0.0
        for _ in range(repeat):
            if depth and depth != self._depth:
                self.pp(depth)
            self._session.rewind(depth)
            self._depth = depth
            ids = self._ids(n)
            begin = perf_counter()
            self._session.append_each(ids, self._logits)
            total += perf_counter() - begin
        return total

    def batch(self, n: int, n_seq: int) -> float:
        """Seconds of n tokens for each of n_seq sequences, a token of each per call."""
        self._several.clear()
        begin = perf_counter()
        for position in range(n):
            self._several.append(self._ids(n_seq), position)
        return perf_counter() - begin

    def text(self, n: int, repeat: int = 1) -> float:
        """Seconds of generating text of n tokens from Python, sampled as nanoGPT does by default."""
        begin = perf_counter()
        for seed in range(repeat):
            text = self._model.generate([0], n, temperature=0.8, top_k=200, seed=seed)
            "".join(text)
            if text.n_generated != n:
                raise RuntimeError(f"the text ended after {text.n_generated} of {n} tokens")
        return perf_counter() - begin

    def logits(self, ids: list[int]) -> list[float]:
        """The logits after the last of ids."""
        self._session.rewind(0)
        self._depth = -1
        return self._session.feed(ids).tolist()

    def every(self, ids: list[int]) -> str:
        """The logits after every one of ids, float32 [len(ids), n_vocab] in base64."""
        return base64.b64encode(self._model.logits(ids).tobytes()).decode()

    def memory(self) -> dict[str, int]:
        return worker.memory()

    def _ids(self, n: int) -> array:
        return array("i", self._random.choices(range(self._model.info.n_vocab), k=n))


class Several:
    """A session of several sequences, which pygpt's Python interface has no word for yet."""

    def __init__(self, model: pygpt.Model, n_seq: int, n_ctx: int) -> None:
        self._model = model  # it must outlive the session
        pointer = _lib.lib.gpt_session_new(model._handle.open(), n_seq, n_ctx)
        self._pointer = _lib._opened(pointer, _lib.lib.gpt_session_free)
        self._n = n_seq
        self._logits = np.empty((n_seq, model.info.n_vocab), np.float32)

    def clear(self) -> None:
        for i in range(self._n):
            _lib._check(_lib.lib.gpt_session_rewind(self._pointer, i, 0))

    def append(self, ids: array, position: int) -> None:
        rows = array("i", [value for i, id in enumerate(ids) for value in (id, i, position, 1)])
        rows, logits = _lib.ffi.from_buffer("struct gpt_row[]", rows), _lib.ffi.from_buffer("float[]", self._logits)
        _lib._check(_lib.lib.gpt_session_eval(self._pointer, rows, self._n, logits))


if __name__ == "__main__":
    worker.serve(Own())
