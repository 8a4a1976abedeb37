"""The tokens of a file: their texts and kinds, checked, and how GPT-2 spells bytes. Knows nothing of how text is cut.

What the file says is not trusted: a vocabulary that contradicts itself is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from math import isfinite
from typing import Any

from pygpt._lib import BadFormat, Keys, Strings

# values in tokenizer.ggml.token_type; 0 is "undefined"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NEVER_PLAIN = (UNKNOWN, CONTROL, UNUSED)  # what plain text cannot become

FIRST = 1 << 14  # so many tokens are looked up first
SCANS = 16  # before a dict of all is made: so many searches through them all take a third of its time


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


# Printable bytes are spelled as themselves, the others as U+0100 and up; the order is that of GPT-2's first 256 tokens.
BYTE_OF = _byte_alphabet()


class Vocabulary:
    """tokens: their texts, as bytes; kinds: a byte per token, the values above; has_kinds: are they from the file?"""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.tokens = strings(keys, "tokenizer.ggml.tokens")
        types = keys.get("tokenizer.ggml.token_type")
        self.has_kinds = types is not None
        self.kinds = bytes([NORMAL]) * len(self.tokens) if types is None else _kinds(types, len(self.tokens))
        self._scans = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def id_of(self, text: bytes) -> int | None:
        """The id of a token that plain text can become. The first few calls cost less than `ids`."""
        if self._scans >= SCANS or "ids" in self.__dict__:
            return self.ids.get(text)
        id = self._first.get(text)
        if id is None:
            self._scans += 1
            id = self.tokens.find(text)
        if id is None or self.kinds[id] in NEVER_PLAIN:
            return None
        self._first[text] = id
        return id

    @cached_property
    def _first(self) -> dict[bytes, int]:
        """The first tokens, which are the common ones, and others that were found."""
        first = self.tokens.places(0, FIRST)
        if len(first) < min(FIRST, len(self.tokens)):
            _check_twice(self.tokens)
        return first

    def of_kind(self, *kinds: int) -> list[int]:
        """The ids of all tokens of these kinds."""
        return [found.start() for found in re.finditer(b"[%b]" % re.escape(bytes(kinds)), self.kinds)]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """All tokens that plain text can become, by their texts. Made when it is needed: it takes a while."""
        ids = self.tokens.places()
        if len(ids) < len(self.tokens):
            _check_twice(self.tokens)
        for id in self.of_kind(*NEVER_PLAIN):
            ids.pop(self.tokens[id], None)
        ids.pop(b"", None)
        return ids


def strings(keys: Mapping[str, Any], name: str) -> Strings:
    """A list of strings that must be there."""
    if isinstance(keys, Keys):
        found = keys.strings(name)
    else:
        value = keys.get(name)
        found = Strings.of(value) if isinstance(value, list) and all(isinstance(text, str) for text in value) else None
    if not found:
        raise wrong(name, "a list of strings", keys.get(name))
    return found


def token_id(keys: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    """The id of a special token, None if the file names none."""
    value = keys.get(name)
    if value is None or (type(value) is int and 0 <= value < n_vocab):
        return value
    raise wrong(name, f"an id below {n_vocab}, the size of the vocabulary", value)


def token_ids(keys: Mapping[str, Any], name: str, n_vocab: int) -> frozenset[int]:
    """A list of ids; empty if there is none."""
    value = keys.get(name, [])
    if isinstance(value, list) and all(type(id) is int and 0 <= id < n_vocab for id in value):
        return frozenset(value)
    raise wrong(name, f"a list of ids below {n_vocab}, the size of the vocabulary", value)


def data(keys: Mapping[str, Any], name: str) -> bytes:
    """A list of bytes, with or without a sign; empty if there is none."""
    value = keys.get(name, b"")
    try:
        return value if isinstance(value, bytes) else bytes(byte & 0xFF for byte in value)
    except TypeError:
        raise wrong(name, "a list of bytes", value) from None


def flag(keys: Mapping[str, Any], name: str, default: bool) -> bool:
    value = keys.get(name, default)
    if type(value) is bool:
        return value
    raise wrong(name, "true or false", value)


def scores(keys: Mapping[str, Any], n_vocab: int) -> list[float]:
    """tokenizer.ggml.scores: a number per token, the higher the earlier it is joined from its parts."""
    value = keys.get("tokenizer.ggml.scores")
    is_list = isinstance(value, list) and len(value) == n_vocab
    if is_list and {*map(type, value)} <= {int, float} and isfinite(sum(value)):
        return value
    raise wrong("tokenizer.ggml.scores", f"a list of {n_vocab} numbers, one per token", value)


def wrong(name: str, expected: str, found: object) -> BadFormat:
    if found is None:
        shown = "nothing"
    elif isinstance(found, list):
        shown = f"a list of {len(found)} that begins with {str(found[:3])[:60]}" if found else "an empty list"
    else:
        shown = repr(found)[:60]
    return BadFormat(f"{name}: expected {expected}, found {shown}; the file is damaged, convert the model again")


def _kinds(types: object, n_vocab: int) -> bytes:
    try:
        kinds = bytes(types) if isinstance(types, list) else b""
    except (TypeError, ValueError):
        kinds = b""
    if len(kinds) != n_vocab or re.search(rb"[^\x00-\x06]", kinds):
        raise wrong("tokenizer.ggml.token_type", f"a list of {n_vocab} numbers from 0 to 6, one per token", types)
    return kinds


def _check_twice(tokens: Strings) -> None:
    seen: dict[bytes, int] = {}
    for id, token in enumerate(tokens):
        if token and seen.setdefault(token, id) != id:
            text = token.decode("utf-8", "replace")
            raise BadFormat(
                f"tokenizer.ggml.tokens: expected each token once, found {text!r} as {seen[token]} and as {id}; "
                "the file is damaged, convert the model again"
            )
