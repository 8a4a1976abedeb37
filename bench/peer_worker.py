"""llama.cpp behind a pipe, in its own environment: its C functions called as its own llama-bench calls them.

Random ids, logits of the last token only for a prompt, one token per call for decoding, no sampling.
"""

from __future__ import annotations

import base64
import ctypes
import random
import sys
from array import array
from time import perf_counter

import llama_cpp as llama
import worker

FLASH = {
    "auto": llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
N_BATCH, N_UBATCH = 2048, 512  # llama-bench's


@llama.llama_log_callback
def log(level: int, text: bytes, data: object) -> None:
    if level in (3, 4):  # warnings and errors
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class Peer:
    """One model and one context at a time."""

    def __init__(self) -> None:
        llama.llama_log_set(log, None)
        llama.llama_backend_init()
        self._path = self._model = self._context = None

    def versions(self) -> str:
        features = llama.llama_print_system_info().decode().replace(" = 1", "").replace(" |", ",").strip(" ,")
        features = features.replace("CPU : ", "built for ")
        return f"llama-cpp-python {llama.__version__}, llama.cpp {llama.llama_version().decode()}, {features}"

    def quantize(self, source: str, target: str, type: str, threads: int, pure: bool = False) -> None:
        """As llama-quantize does: its own mixture of types, or every matrix of the same."""
        p = llama.llama_model_quantize_default_params()
        p.ftype, p.nthread, p.pure = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{type}"), threads, pure
        if llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(p)):
            raise RuntimeError(f"llama.cpp could not quantize {source} to {type}")

    def load(
        self, path: str, threads: int, n_ctx: int, n_seq: int = 1, flash: str = "auto", exact_cache: bool = False
    ) -> None:
        """A model, if it is another one, and a fresh context, its cache in f16 or f32."""
        if self._context:
            llama.llama_free(self._context)
            self._context = None
        if path != self._path:
            if self._model:
                llama.llama_model_free(self._model)
            self._path = None
            self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
            if not self._model:
                raise RuntimeError(f"llama.cpp could not load {path}")
            self._path = path
        p = llama.llama_context_default_params()
        p.n_ctx, p.n_seq_max, p.n_batch, p.n_ubatch = n_ctx * n_seq, n_seq, N_BATCH, N_UBATCH
        p.n_threads = p.n_threads_batch = threads
        p.flash_attn_type = FLASH[flash]
        if exact_cache:
            p.type_k = p.type_v = llama.GGML_TYPE_F32
        self._context = llama.llama_init_from_model(self._model, p)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context of {n_ctx} tokens")
        self._cache = llama.llama_get_memory(self._context)
        self._n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._depth = 0
        self._random = random.Random(1)

    def pp(self, n: int, repeat: int = 1) -> float:
        """Seconds of reading n tokens into an empty cache."""
        total = 0.0
        for _ in range(repeat):
            llama.llama_memory_clear(self._cache, False)
            ids = self._ids(n)
            begin = perf_counter()
            for i in range(0, n, N_BATCH):
                piece = (llama.llama_token * min(N_BATCH, n - i))(*ids[i : i + N_BATCH])
                self._decode(llama.llama_batch_get_one(piece, len(piece)))
            llama.llama_synchronize(self._context)
            total += perf_counter() - begin
        self._depth = n
        return total

    def tg(self, n: int, depth: int = 0, repeat: int = 1) -> float:
        """Seconds of n tokens one by one behind depth others, which stay in the cache for the next time."""
        total = 0.0
        for _ in range(repeat):
            if depth and depth != self._depth:
                self.pp(depth)
            llama.llama_memory_seq_rm(self._cache, 0, depth, -1)
            self._depth = depth
            token = (llama.llama_token * 1)()
            batch, ids, context = llama.llama_batch_get_one(token, 1), self._ids(n), self._context
            decode, synchronize, failed = llama.llama_decode, llama.llama_synchronize, 0
            begin = perf_counter()
            for token[0] in ids:
                failed |= decode(context, batch)
                synchronize(context)
            total += perf_counter() - begin
            if failed:
                raise RuntimeError("llama_decode failed")
        return total

    def batch(self, n: int, n_seq: int) -> float:
        """Seconds of n tokens for each of n_seq sequences, a token of each per call."""
        llama.llama_memory_clear(self._cache, False)
        self._depth = -1
        batch = llama.llama_batch_init(n_seq, 0, 1)
        batch.n_tokens = n_seq
        for i in range(n_seq):
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i, 1
        begin = perf_counter()
        for position in range(n):
            for i, id in enumerate(self._ids(n_seq)):
                batch.token[i], batch.pos[i] = id, position
            self._decode(batch)
            llama.llama_synchronize(self._context)
        seconds = perf_counter() - begin
        llama.llama_batch_free(batch)
        return seconds

    def logits(self, ids: list[int]) -> list[float]:
        """The logits after the last of ids."""
        llama.llama_memory_clear(self._cache, False)
        self._depth = -1
        tokens = (llama.llama_token * len(ids))(*ids)  # the batch only points to it
        self._decode(llama.llama_batch_get_one(tokens, len(ids)))
        return llama.llama_get_logits_ith(self._context, -1)[: self._n_vocab]

    def every(self, ids: list[int]) -> str:
        """The logits after every one of ids, float32 [len(ids), n_vocab] in base64."""
        llama.llama_memory_clear(self._cache, False)
        self._depth = -1
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = id, i, 1, 0, 1
        self._decode(batch)
        rows = (
            bytes(array("f", llama.llama_get_logits_ith(self._context, i)[: self._n_vocab])) for i in range(len(ids))
        )
        answer = base64.b64encode(b"".join(rows)).decode()
        llama.llama_batch_free(batch)
        return answer

    def memory(self) -> dict[str, int]:
        return worker.memory()

    def _ids(self, n: int) -> array:
        return array("i", self._random.choices(range(self._n_vocab), k=n))

    def _decode(self, batch: llama.llama_batch) -> None:
        if llama.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")


if __name__ == "__main__":
    worker.serve(Peer())
