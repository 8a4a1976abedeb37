"""Character vocabularies: nanoGPT's meta.pkl, or the training text that they were made from."""

from __future__ import annotations

import os
import stat
from typing import Any

from pygpt._lib import BadArgument, BadFormat, NotFound, Unreadable

from .checkpoint import Vocabulary
from .unpickle import read_pickle, shown


def round_up(n: int, multiple: int) -> int:
    """Sizes are rounded up by hand sometimes; the ids beyond the vocabulary are padding."""
    return -(-n // multiple) * multiple


def from_meta(path: str, n_vocab: int) -> Vocabulary:
    """The characters of data/<dataset>/meta.pkl: {'vocab_size': n, 'itos': {0: '\\n', ..}, 'stoi': {'\\n': 0, ..}}."""
    try:
        meta: Any = read_pickle(path)
    except OSError as error:
        raise unreadable(path, error) from None
    itos = meta.get("itos") if type(meta) is dict else None
    if type(itos) is list:
        itos = dict(enumerate(itos))
    if type(itos) is not dict or not itos:
        found = "the keys " + ", ".join(shown(key) for key in list(meta)[:6]) if type(meta) is dict else shown(meta)
        raise BadFormat(f"{path}: expected a dictionary with 'itos', as nanoGPT's prepare.py writes it, found {found}")
    entries = [itos.get(i) for i in range(len(itos))]
    if not all(type(entry) is str and entry for entry in entries):
        raise BadFormat(f"{path}: expected a character for each id from 0 to {len(itos) - 1} in 'itos', found others")
    n = len(entries)
    padded = n < n_vocab and n_vocab in (round_up(n, 64), round_up(n, 128))
    if n != n_vocab and not padded:
        raise BadFormat(
            f"{path}: expected a vocabulary of {n_vocab} ids as the checkpoint has, found {n}; "
            "name the meta.pkl that it was trained with by --meta"
        )
    return vocabulary(entries, n_vocab, path)


def characters_of(path: str) -> set[str]:
    """The different characters of a text file."""
    found: set[str] = set()
    try:
        if stat.S_ISCHR(os.stat(path).st_mode):  # /dev/zero has no end; a pipe has one
            raise BadArgument(f"{path}: is a device; name a file with the text that the model was trained on")
        with open(path, encoding="utf-8") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except UnicodeDecodeError as error:
        raise BadFormat(f"{path}: expected text in UTF-8, found the byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return found


def count(path: str) -> int:
    """How many different characters a text file holds; 0 if it is no text."""
    try:
        return len(characters_of(path))
    except (BadFormat, Unreadable):
        return 0


def from_text(path: str, n_vocab: int) -> Vocabulary:
    """sorted(set(text)), as nanoGPT's prepare.py makes it."""
    found = characters_of(path)
    if len(found) != n_vocab:
        raise BadFormat(
            f"{path}: expected a text of {n_vocab} different characters, as many as the checkpoint has ids, "
            f"found {len(found)}; name the text that the model was trained on"
        )
    result = vocabulary(sorted(found), n_vocab, path)
    result.sample = path
    return result


def all_bytes(n_vocab: int) -> Vocabulary:
    """Every id is a byte of UTF-8; ids from 256 on are special or padding, which no text can produce."""
    if n_vocab < 256:
        raise BadFormat(f"a vocabulary of bytes has 256 ids, and this model only {n_vocab}")
    keys = {"tokenizer.ggml.model": "none", "pygpt.tokenizer.model": "byte"}
    return Vocabulary(keys, "bytes")


def vocabulary(entries: list[str], n_vocab: int, path: str) -> Vocabulary:
    if len(set(entries)) != len(entries):
        raise BadFormat(f"{path}: expected each character once, found one with two ids")
    try:
        "".join(entries).encode()
    except UnicodeEncodeError:
        raise BadFormat(f"{path}: expected characters that UTF-8 can hold, found half of a surrogate pair") from None
    assumptions = []
    if n_vocab > len(entries):
        assumptions.append(f"Of the {n_vocab} ids those from {len(entries)} on are padding, never to be produced.")
    keys = {
        "tokenizer.ggml.model": "none",
        "pygpt.tokenizer.model": "character",
        "pygpt.tokenizer.characters": entries,
    }
    return Vocabulary(keys, f"{len(entries)} characters from {path}", assumptions, files=[path])


def unreadable(path: str, error: OSError) -> OSError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path}: there is no such file")
    return Unreadable(f"{path}: cannot be read: {error.strerror or error}")
