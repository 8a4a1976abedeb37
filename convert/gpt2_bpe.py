"""GPT-2's byte-level BPE vocabulary, which ships with the package because no checkpoint holds it.

Only the merges are stored (pygpt/data/gpt2_bpe.txt.gz: a line with the licence, then one merge per line, best first, in
GPT-2's alphabet of bytes). The tokens follow from them: the 256 bytes, one token per merge, <|endoftext|>.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Any

from pygpt._lib import BadFormat
from pygpt.vocabulary import BYTE_OF, CONTROL, NORMAL, UNUSED

N_TOKENS = 50257
END_OF_TEXT = 50256


def merges() -> list[str]:
    path = resources.files("pygpt").joinpath("data", "gpt2_bpe.txt.gz")
    try:
        licence, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError):
        raise BadFormat(f"{path}: GPT-2's vocabulary cannot be read; install pygpt again") from None
    return lines


def tokens() -> list[str]:
    return [*BYTE_OF, *(merge.replace(" ", "") for merge in merges()), "<|endoftext|>"]


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
