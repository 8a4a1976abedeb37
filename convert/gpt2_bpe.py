"""GPT-2's byte-level BPE vocabulary, which ships with the package because no checkpoint holds it.

Only the merges are stored (pygpt/data/gpt2_bpe.txt.gz: a line with the licence, then one merge per line, best first, in
GPT-2's alphabet of bytes). The tokens follow from them: the 256 bytes, one token per merge, <|endoftext|>.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Any

from pygpt._lib import BadFormat

N_TOKENS = 50257
END_OF_TEXT = 50256
NORMAL, CONTROL, UNUSED = 1, 3, 5  # GGUF's token types


def alphabet() -> list[str]:
    """The characters that stand for bytes, in the order of their tokens: the printable bytes first, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def merges() -> list[str]:
    path = resources.files("pygpt").joinpath("data", "gpt2_bpe.txt.gz")
    try:
        licence, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError):
        raise BadFormat(f"{path}: GPT-2's vocabulary cannot be read; install pygpt again") from None
    return lines


def tokens() -> list[str]:
    return [*alphabet(), *(merge.replace(" ", "") for merge in merges()), "<|endoftext|>"]


def vocabulary_keys(n_vocab: int) -> dict[str, Any]:
    """GGUF's keys for a model of `n_vocab` ids; those past the vocabulary are padding, which no text can produce."""
    pieces = tokens()
    n_padding = n_vocab - len(pieces)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces + [f"[PAD{i}]" for i in range(len(pieces), n_vocab)],
        "tokenizer.ggml.token_type": [NORMAL] * END_OF_TEXT + [CONTROL] + [UNUSED] * n_padding,
        "tokenizer.ggml.merges": merges(),
        "tokenizer.ggml.bos_token_id": END_OF_TEXT,
        "tokenizer.ggml.eos_token_id": END_OF_TEXT,
        "tokenizer.ggml.unknown_token_id": END_OF_TEXT,
    }
