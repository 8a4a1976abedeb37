"""The bigram model of Karpathy's lecture, bigram.py: one square table, whose row of an id are the logits after it.

It is known by token_embedding_table.weight, alone: the lecture's GPT has the same name beside others.
"""

from __future__ import annotations

from pygpt._lib import BadFormat

from . import vocabularies
from .checkpoint import Checkpoint, Input, Options
from .claims import Claims

NAME = "lecture bigram.py"
TABLE = "token_embedding_table.weight"
CONTEXT = 1024  # the model looks at one id, however many there are


def recognise(source: Input) -> str | None:
    return TABLE if [*source.weights] == [TABLE] else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "meta", "text", "tokenizer")
    shape = source.weights[TABLE].shape
    if len(shape) != 2 or shape[0] != shape[1] or 0 in shape:
        raise BadFormat(
            f"{source.path}: expected {TABLE} to be square, with the logits after each id, found shape {list(shape)}"
        )
    claims = Claims(source.path, source.weights, NAME, "its ids")
    table = claims.take(TABLE, shape)
    claims.finish()
    n_vocab = shape[0]
    vocabulary = vocabularies.find(source.path, n_vocab, options)
    return Checkpoint(
        source=NAME,
        recognised_by=TABLE,
        architecture="bigram",
        keys={"bigram.context_length": CONTEXT, "bigram.vocab_size": n_vocab},
        tensors={"token_embd.weight": table},
        vocabulary=vocabulary,
        summary=f"a table of {n_vocab} ids",
        assumptions=vocabulary.assumptions,
    )
