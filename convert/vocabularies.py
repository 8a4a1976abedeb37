"""Finds the vocabulary of a checkpoint that does not hold one: what the user named, else what lies beside it.

Owns the order in which places are looked at. Each kind of file is read by a module of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pygpt._lib import BadArgument, Error, NotFound, Unsupported

from . import characters, gpt2_bpe
from .checkpoint import Options, Vocabulary, find_above
from .unpickle import shown

BPE_SIZES = (50257, 50304)  # GPT-2's ids, and rounded up to a multiple of 64
TEXTS = ("input.txt",)  # what training texts are called

# ids of a model, the option that says what they are then; others are characters
LIKELY = (
    ((*range(256, 265), 320), "if its ids are bytes, say so with --tokenizer bytes"),
    (range(50257, 51201), "if its ids are GPT-2's and some more, say so with --tokenizer gpt2"),
)
NAME_TEXT = "name the text that it was trained on with --text input.txt"


def find(path: str, n_vocab: int, options: Options, dataset: str | None = None) -> Vocabulary:
    """The vocabulary of the checkpoint `path` with `n_vocab` ids.

    dataset: the name of its folder below data/, where nanoGPT keeps meta.pkl and input.txt.
    """
    if options.meta is not None and options.tokenizer is not None:
        raise BadArgument("--meta and --tokenizer both name the vocabulary: leave out --meta")
    if options.tokenizer is not None:
        return named(options.tokenizer, n_vocab)
    if options.meta is not None:
        return with_sample(characters.from_meta(options.meta, n_vocab), path, dataset)
    is_bpe = n_vocab in BPE_SIZES
    text = None if is_bpe else options.text
    if found := beside(path, "meta.pkl", dataset):
        try:
            return with_sample(characters.from_meta(found, n_vocab), path, dataset)
        except Error:  # it is another model's
            if text is None:
                raise
    if text is not None:
        return characters.from_text(text, n_vocab)
    if is_bpe:
        return with_sample(gpt2(n_vocab), path, dataset)
    for name in TEXTS:
        found = beside(path, name, dataset)
        if found and characters.count(found) == n_vocab:
            return characters.from_text(found, n_vocab)
    advice = next((advice for sizes, advice in LIKELY if n_vocab in sizes), NAME_TEXT)
    raise NotFound(
        f"{path}: expected the vocabulary of its {n_vocab} ids, found no {dataset_file('meta.pkl', dataset)} and no "
        f"text with so many characters beside it; {advice}"
    )


def dataset_file(name: str, dataset: str | None) -> str:
    return os.path.join("data", dataset, name) if dataset else name


def beside(path: str, name: str, dataset: str | None) -> str | None:
    """A file in the checkpoint's folder; or in the folder of its dataset, where nanoGPT's programs look for it."""
    near = os.path.join(os.path.dirname(path), name)
    if os.path.isfile(near):
        return near
    if not dataset:
        return None
    usual = dataset_file(name, dataset)
    return find_above(path, usual) or (usual if os.path.isfile(usual) else None)


def with_sample(vocabulary: Vocabulary, path: str, dataset: str | None) -> Vocabulary:
    found = (beside(path, name, dataset) for name in TEXTS)
    vocabulary.sample = vocabulary.sample or next(filter(None, found), None)
    return vocabulary


def gpt2(n_vocab: int) -> Vocabulary:
    """GPT-2's BPE, for a model of n_vocab ids."""
    n_padding = n_vocab - gpt2_bpe.N_TOKENS
    text = f"GPT-2's BPE, {gpt2_bpe.N_TOKENS} tokens" + (f" and {n_padding} ids of padding" if n_padding else "")
    why = f"The vocabulary is GPT-2's BPE: the model has {n_vocab} ids, and no other vocabulary lies beside it."
    return Vocabulary(gpt2_bpe.vocabulary_keys(n_vocab), text, [why])


# ---- what --tokenizer names


def named(name: str, n_vocab: int) -> Vocabulary:
    """bytes, gpt2, or a file, which is known by its first bytes."""
    if name == "bytes":
        return characters.all_bytes(n_vocab)
    if name == "gpt2":
        if n_vocab < gpt2_bpe.N_TOKENS:
            raise BadArgument(f"GPT-2's vocabulary has {gpt2_bpe.N_TOKENS} ids, and this model only {n_vocab}")
        vocabulary = gpt2(n_vocab)
        vocabulary.assumptions.clear()
        return vocabulary
    if not os.path.isfile(name):
        raise NotFound(f"{name}: there is no such file; --tokenizer takes a tokenizer's file, bytes or gpt2")
    try:
        with open(name, "rb") as file:
            head = file.read(256)
    except OSError as error:
        raise characters.unreadable(name, error) from None
    return reader(name, head)(name, n_vocab)


def reader(path: str, head: bytes) -> Callable[[str, int], Vocabulary]:
    from . import llama2c_tokenizer, sentencepiece_tokenizer, tiktoken_ranks

    if head[:1] == b"\x80":
        return pickled
    if tiktoken_ranks.is_rank_file(head):
        return tiktoken_ranks.from_rank_file
    if path.endswith(".bin"):
        return llama2c_tokenizer.from_bin
    if path.endswith(".model"):
        return sentencepiece_tokenizer.from_model
    raise Unsupported(
        f"{path}: expected a tokenizer: nanoGPT's meta.pkl, nanochat's tokenizer.pkl, a tokenizer.model or llama2.c's "
        f"tokenizer.bin, found the bytes {shown(head[:8].hex(' '))}"
    )


def pickled(path: str, n_vocab: int) -> Vocabulary:
    """meta.pkl is a dictionary, tokenizer.pkl an object of tiktoken."""
    from . import tiktoken_ranks
    from .unpickle import read_pickle

    if type(read_pickle(path)) is dict:
        return characters.from_meta(path, n_vocab)
    return tiktoken_ranks.from_pickle(path, n_vocab)
