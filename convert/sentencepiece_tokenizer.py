"""sentencepiece's tokenizer.model as a vocabulary of its own, without a Hugging Face folder around it."""

from __future__ import annotations

import os
from typing import Any

from gguf import GGUFValue, GGUFValueType

from pygpt._lib import BadFormat
from pygpt.tokenizer import TEXT
from pygpt.vocabulary import USER_DEFINED

from .characters import round_up
from .checkpoint import Vocabulary
from .hf_tokenizer import Table, from_sentencepiece
from .sentencepiece_model import SentencepieceModel, read_model

ARRAY, UINT8 = GGUFValueType.ARRAY, GGUFValueType.UINT8


def from_model(path: str, n_vocab: int) -> Vocabulary:
    """The pieces for a model of n_vocab ids, which may be a few more, to a round number.

    As sentencepiece encodes: no token stands before a text or after it.
    """
    model = read_model(path)
    n = len(model.pieces)
    if n_vocab not in (n, round_up(n, 64), round_up(n, 128)):
        raise misfit(path, n_vocab, n)
    table = Table(path, n_vocab)
    vocabulary = from_sentencepiece(table, model, os.path.dirname(path))
    vocabulary.keys["tokenizer.ggml.tokens"] = table.fill()
    vocabulary.keys["tokenizer.ggml.token_type"] = table.types
    vocabulary.keys |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
    vocabulary.keys |= normalization(model)
    if USER_DEFINED in table.types:
        vocabulary.keys["pygpt.tokenizer.space_prefix"] = TEXT
    vocabulary.text += f", {n} tokens from {path}"
    if n < n_vocab:
        vocabulary.assumptions.append(f"Of the {n_vocab} ids those from {n} on are padding, never to be produced.")
    return vocabulary


def normalization(model: SentencepieceModel) -> dict[str, Any]:
    """What the model does to a text first, so that training saw no other: in llama.cpp's keys, which it skips here."""
    keys: dict[str, Any] = {}
    if model.charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = GGUFValue(model.charsmap, ARRAY, UINT8)
    if model.remove_extra_whitespaces:
        keys["tokenizer.ggml.remove_extra_whitespaces"] = True
    return keys


def from_model_of_size(path: str, n_vocab: int) -> Vocabulary:
    """The same for a file that was only found: it must have as many pieces."""
    if (n := len(read_model(path).pieces)) != n_vocab:
        raise misfit(path, n_vocab, n)
    return from_model(path, n_vocab)


def misfit(path: str, n_vocab: int, n: int) -> BadFormat:
    return BadFormat(
        f"{path}: expected a tokenizer of {n_vocab} tokens, as many as the model has ids, found {n}; "
        "name the one that it was trained with by --tokenizer"
    )
