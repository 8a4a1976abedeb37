"""Models that are made on the spot in milliseconds, and the command as a subprocess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pygpt import _lib
from pygpt.vocabulary import BYTE_OF, CONTROL

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(path: str) -> Path:
    """A real input that lies beside the project on some machines; skips the test where it does not."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"skipped: {path} is not here (it lies in ../shared/data where the project is developed)")
    return found


def write_gguf(path: Path, tensors: dict[str, np.ndarray], keys: dict[str, Any], type: str = "f32") -> Path:
    """A GGUF file of float32 arrays; matrices are stored as `type`."""
    writer = gguf.GGUFWriter(path, keys.get("general.architecture", "gpt2"))
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in keys.items():
        if name != "general.architecture":
            add.get(value.__class__, writer.add_array)(name, value)
    for name, array in tensors.items():
        kind = _lib.types()[type if array.ndim == 2 else "f32"]
        rows = _lib.quantize(array.astype(np.float32), kind.name)
        writer.add_tensor(name, rows, raw_shape=rows.shape, raw_dtype=gguf.GGMLQuantizationType(kind.id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gpt2_tensors(n_vocab: int, n_ctx: int, n_embd: int, n_layer: int, random: np.random.Generator | None):
    """Random weights, or zeros where random is None: then a layer passes its input on."""

    def draw(*shape: int, scale: float = 0.3) -> np.ndarray:
        return random.normal(0, scale, shape) if random else np.zeros(shape)

    tensors = {"token_embd.weight": draw(n_vocab, n_embd), "position_embd.weight": draw(n_ctx, n_embd)}
    for i in range(n_layer):
        tensors |= {
            f"blk.{i}.attn_norm.weight": 1 + draw(n_embd),
            f"blk.{i}.attn_qkv.weight": draw(3 * n_embd, n_embd),
            f"blk.{i}.attn_qkv.bias": draw(3 * n_embd),
            f"blk.{i}.attn_output.weight": draw(n_embd, n_embd),
            f"blk.{i}.ffn_norm.weight": 1 + draw(n_embd),
            f"blk.{i}.ffn_up.weight": draw(4 * n_embd, n_embd),
            f"blk.{i}.ffn_down.weight": draw(n_embd, 4 * n_embd),
        }
    return tensors | {"output_norm.weight": np.ones(n_embd)}


def gpt2_keys(n_ctx: int, n_embd: int, n_layer: int) -> dict[str, Any]:
    return {
        "general.architecture": "gpt2",
        "gpt2.context_length": n_ctx,
        "gpt2.embedding_length": n_embd,
        "gpt2.feed_forward_length": 4 * n_embd,
        "gpt2.block_count": n_layer,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }


def character_keys(characters: Sequence[str]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "none",
        "pygpt.tokenizer.model": "character",
        "pygpt.tokenizer.characters": list(characters),
    }


def bpe_keys(extra: Sequence[str] = ()) -> dict[str, Any]:
    """GPT-2's 256 bytes (id = place in BYTE_OF), "he" with its merge, tokens of your own, and last the end of text."""
    tokens = [*BYTE_OF, "he", *extra, "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [CONTROL],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


@pytest.fixture
def random_model(tmp_path: Path) -> Callable[..., Path]:
    """random_model(characters=..., n_ctx=16, type="q8_0"): two layers of random weights."""

    def make(characters: str = "\n abcdefghijklmnopqrstuvwxyz", n_ctx=16, type="q8_0", n_vocab=None, keys=None) -> Path:
        n_vocab = n_vocab or len(characters)
        tensors = gpt2_tensors(n_vocab, n_ctx, 64, 2, np.random.default_rng(1))
        vocabulary = character_keys(characters) if keys is None else keys
        return write_gguf(tmp_path / "random.gguf", tensors, gpt2_keys(n_ctx, 64, 2) | vocabulary, type)

    return make


@pytest.fixture
def parrot_model(tmp_path: Path) -> Callable[..., Path]:
    """parrot_model(keys, cycle): after cycle[i] it always says cycle[i + 1], at any temperature."""

    def make(keys: dict[str, Any], cycle: Sequence[int], n_vocab: int, n_ctx: int = 32) -> Path:
        n_embd = -(-n_vocab // 32) * 32
        tensors = gpt2_tensors(n_vocab, n_ctx, n_embd, 1, None)
        tensors["token_embd.weight"] = np.eye(n_vocab, n_embd)
        head = np.zeros((n_vocab, n_embd))
        for now, then in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            head[then, now] = 100
        tensors["output.weight"] = head
        return write_gguf(tmp_path / "parrot.gguf", tensors, gpt2_keys(n_ctx, n_embd, 1) | keys)

    return make


@pytest.fixture
def parrot(parrot_model) -> Callable[..., Path]:
    """parrot("abc"): a character model that says abcabc... for ever."""

    def make(text: str, n_ctx: int = 32) -> Path:
        assert len(set(text)) == len(text), "a parrot has one successor per character"
        return parrot_model(character_keys(text), range(len(text)), len(text), n_ctx)

    return make


@pytest.fixture
def byte_parrot(parrot_model) -> Callable[..., Path]:
    """byte_parrot(data): a byte-level BPE model that says these different bytes, then ends the text or begins again."""

    def make(data: bytes, end: bool = True) -> Path:
        place = {byte: id for id, byte in enumerate(BYTE_OF.values())}
        keys = bpe_keys()
        last = len(keys["tokenizer.ggml.tokens"]) - 1
        return parrot_model(keys, [place[b] for b in data] + [last] * end, last + 1)

    return make


def plain_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@pytest.fixture
def pygpt() -> Callable[..., subprocess.CompletedProcess]:
    """pygpt("generate", "-n", 5): the command as a subprocess, with stdout and stderr as bytes; env adds to ours."""

    def run(*arguments: object, env: dict[str, str] | None = None, **settings: Any) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pygpt", *map(str, arguments)]
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | settings
        if "input" in settings:
            del settings["stdin"]
        return subprocess.run(
            command, timeout=120, preexec_fn=plain_signals, env={**os.environ, **(env or {})}, **settings
        )

    return run
