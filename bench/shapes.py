"""Model files with random weights in the exact shapes of known models: for speed and memory, never for quality.

    python bench/shapes.py llama-3.2-1b OUT.gguf

Written as F16, a few megabytes at a time; llama.cpp quantizes them, so that both engines run the very bytes that its
users have. Vocabularies are made up too, of the right size and kind, so that starting takes what it takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pygpt.vocabulary import BYTE_OF, CONTROL, NORMAL, UNUSED

ROWS = 1 << 22  # weights at a time
STEP = 0.02 / 73  # weights are whole multiples, -127 to 127, with a deviation of 0.02: none is a denormal, even in F16


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE: texts of 256 bytes and of merges, then control tokens, then ids without a meaning."""

    pre: str
    n_text: int
    n_control: int
    n_vocab: int
    n_merges: int
    bos: int
    eos: int
    add_bos: bool


@dataclass(frozen=True)
class Shape:
    arch: str
    vocabulary: Vocabulary | int  # or so many characters
    d: int
    layers: int
    heads: int
    kv: int
    ff: int
    ctx: int
    tied: bool = False
    theta: float = 0.0

    @property
    def n_vocab(self) -> int:
        return self.vocabulary if isinstance(self.vocabulary, int) else self.vocabulary.n_vocab


GPT2 = Vocabulary("gpt-2", 50256, 1, 50257, 50000, bos=50256, eos=50256, add_bos=False)
QWEN2 = Vocabulary("qwen2", 151643, 3, 151936, 151387, bos=151643, eos=151643, add_bos=False)
LLAMA3 = Vocabulary("llama-bpe", 128000, 256, 128256, 280147, bos=128000, eos=128001, add_bos=True)

SHAPES = {
    "nanogpt-0.8m": Shape("gpt2", 65, d=128, layers=4, heads=4, kv=4, ff=512, ctx=64, tied=True),
    "nanogpt-10m": Shape("gpt2", 65, d=384, layers=6, heads=6, kv=6, ff=1536, ctx=256, tied=True),
    "gpt2-124m": Shape("gpt2", GPT2, d=768, layers=12, heads=12, kv=12, ff=3072, ctx=1024, tied=True),
    "qwen2.5-0.5b": Shape("qwen2", QWEN2, d=896, layers=24, heads=14, kv=2, ff=4864, ctx=32768, tied=True, theta=1e6),
    "llama-3.2-1b": Shape(
        "llama", LLAMA3, d=2048, layers=16, heads=32, kv=8, ff=8192, ctx=131072, tied=True, theta=5e5
    ),
    "tiny-gpt2": Shape("gpt2", 512, d=256, layers=3, heads=4, kv=4, ff=1024, ctx=64, tied=True),
    "tiny-llama": Shape("llama", 512, d=256, layers=3, heads=4, kv=2, ff=768, ctx=64, theta=1e4),
    "tiny-qwen2": Shape("qwen2", 512, d=256, layers=3, heads=4, kv=1, ff=768, ctx=64, theta=1e6),
    "tiny-qwen3": Shape("qwen3", 512, d=256, layers=3, heads=4, kv=2, ff=768, ctx=64, theta=1e6),
}


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def vocabulary_keys(v: Vocabulary | int) -> dict[str, Any]:
    if isinstance(v, int):
        return {
            "tokenizer.ggml.model": "none",
            "pygpt.tokenizer.model": "character",
            "pygpt.tokenizer.characters": [chr(0x100 + i) for i in range(v)],
        }
    texts, merges = bpe(v.n_text, v.n_merges)
    control = [f"<|control_{i}|>" for i in range(v.n_control)]
    control[v.eos - v.n_text] = "<|endoftext|>"
    unused = [f"[PAD{i}]" for i in range(v.n_text + v.n_control, v.n_vocab)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": v.pre,
        "tokenizer.ggml.tokens": texts + control + unused,
        "tokenizer.ggml.token_type": [NORMAL] * len(texts) + [CONTROL] * len(control) + [UNUSED] * len(unused),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": v.bos,
        "tokenizer.ggml.eos_token_id": v.eos,
        "tokenizer.ggml.add_bos_token": v.add_bos,
    }


def bpe(n_tokens: int, n_merges: int) -> tuple[list[str], list[str]]:
    """256 bytes and all words of ten letters by length, each merged from one before it and a letter.

    Further merges are other ways to the same words, as files converted from Hugging Face have them.
    """
    letters = [letter for letter, byte in BYTE_OF.items() if chr(byte) in " etaoinshr"]
    every = ("".join(word) for n in count(2) for word in product(letters, repeat=n))
    words = list(islice(every, n_tokens - len(BYTE_OF)))
    merges = [f"{word[:-1]} {word[-1]}" for word in words]
    others = (f"{word[:i]} {word[i:]}" for word in words for i in range(1, len(word) - 1))
    return [*BYTE_OF, *words], merges + list(islice(others, n_merges - len(merges)))


# ---- weights ---------------------------------------------------------------------------------------------------------


def tensors(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes. Matrices are random; of the vectors, norms' weights are one and biases are zero."""
    gpt2 = s.arch == "gpt2"

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (s.d,)
        if gpt2:
            yield f"{name}.bias", (s.d,)

    def linear(name: str, rows: int, cols: int, bias: bool = gpt2) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (rows, cols)
        if bias:
            yield f"{name}.bias", (rows,)

    yield "token_embd.weight", (s.n_vocab, s.d)
    if gpt2:
        yield "position_embd.weight", (s.ctx, s.d)
    yield from norm("output_norm")
    if not s.tied:
        yield "output.weight", (s.n_vocab, s.d)
    rows_kv = s.d // s.heads * s.kv
    for i in range(s.layers):
        p = f"blk.{i}."
        yield from norm(p + "attn_norm")
        if gpt2:
            yield from linear(p + "attn_qkv", 3 * s.d, s.d)
        else:
            for name, rows in (("attn_q", s.d), ("attn_k", rows_kv), ("attn_v", rows_kv)):
                yield from linear(p + name, rows, s.d, bias=s.arch == "qwen2")
        if s.arch == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                yield f"{p}{name}.weight", (s.d // s.heads,)
        yield from linear(p + "attn_output", s.d, s.d)
        yield from norm(p + "ffn_norm")
        if not gpt2:
            yield from linear(p + "ffn_gate", s.ff, s.d)
        yield from linear(p + "ffn_up", s.ff, s.d)
        yield from linear(p + "ffn_down", s.d, s.ff)


def blocks(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """The values of a tensor in order: matrices as float16, vectors and positions as float32."""
    if len(shape) == 1:
        yield np.full(shape, 1 if name.endswith("norm.weight") else 0, np.float32)
        return
    draw, left = np.random.default_rng([seed, *name.encode()]), shape[0] * shape[1]
    while left:
        n = min(ROWS, left)
        yield (draw.integers(-127, 128, n, np.int8).astype(np.float32) * np.float32(STEP)).astype(dtype(name, shape))
        left -= n


def dtype(name: str, shape: tuple[int, ...]) -> type:
    """What llama.cpp's own converter writes."""
    return np.float32 if len(shape) == 1 or name == "position_embd.weight" else np.float16


# ---- files -----------------------------------------------------------------------------------------------------------


def f16_bytes(s: Shape) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype(name, shape)).itemsize for name, shape in tensors(s))


def write(name: str, out: Path, seed: int = 0) -> None:
    """A shape as a F16 file."""
    s = SHAPES[name]
    w = gguf.GGUFWriter(None, s.arch)
    w.add_name(name)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_vocab_size(s.n_vocab)
    w.add_context_length(s.ctx)
    w.add_embedding_length(s.d)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv)
    if s.arch == "gpt2":
        w.add_layer_norm_eps(1e-5)
    else:
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(s.theta)
        w.add_rope_dimension_count(s.d // s.heads)
    add = {bool: w.add_bool, int: w.add_uint32, str: w.add_string, list: w.add_array}
    for key, value in vocabulary_keys(s.vocabulary).items():
        add[type(value)](key, value)
    for tensor, shape in tensors(s):
        kind = dtype(tensor, shape)
        w.add_tensor_info(tensor, shape, np.dtype(kind), int(np.prod(shape)) * np.dtype(kind).itemsize)
    w.write_header_to_file(out)
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    file = w.fout[0]
    w.write_padding(file, file.tell())
    for tensor, shape in tensors(s):
        written = sum(file.write(block.data) for block in blocks(tensor, shape, seed))
        w.write_padding(file, written)
    w.close()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=SHAPES)
    p.add_argument("out", type=Path)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    write(o.name, o.out, o.seed)


if __name__ == "__main__":
    main()
