"""sentencepiece's tokenizer.model as a vocabulary of its own, without a Hugging Face folder around it."""

from __future__ import annotations

import os

from pygpt._lib import BadFormat

from .characters import round_up
from .checkpoint import Vocabulary
from .hf_tokenizer import Table, from_sentencepiece
from .sentencepiece_model import read_model


def from_model(path: str, n_vocab: int) -> Vocabulary:
    """The pieces for a model of n_vocab ids, which may be a few more, to a round number.

    As sentencepiece encodes: no token stands before a text or after it.
    """
    model = read_model(path)
    n = len(model.pieces)
    if n_vocab not in (n, round_up(n, 64), round_up(n, 128)):
        raise misfit(path, n_vocab, n)
    table = Table(path, n_vocab)
    vocabulary = from_sentencepiece(table, model, os.path.dirname(path), {})
    vocabulary.keys["tokenizer.ggml.tokens"] = table.fill()
    vocabulary.keys["tokenizer.ggml.token_type"] = table.types
    vocabulary.keys |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
    vocabulary.text += f", {n} tokens from {path}"
    if n < n_vocab:
        vocabulary.assumptions.append(f"Of the {n_vocab} ids those from {n} on are padding, never to be produced.")
    if model.remove_extra_whitespaces:
        vocabulary.assumptions.append(
            "Spaces stay as they are in a text: sentencepiece would make one of several (remove_extra_whitespaces)."
        )
    return vocabulary


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
