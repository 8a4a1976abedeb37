"""Reads a JSON file as hostile input: its size, its nesting and names that stand twice each give a sentence."""

from __future__ import annotations

import json
from typing import Any

from pygpt._lib import BadFormat

from .unpickle import shown
from .whole_file import read_whole

MAX_BYTES = 64 << 20  # the largest tokenizer.json that is known has 33 MB
MAX_ITEMS = 3_000_000  # and about two million items; each takes 100 bytes of memory
MARKS = {b",": 1, b"[": 1, b"{": 3}  # what the items in a file are told by; an object takes as much as three of them


def read_object(path: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object that the file holds."""
    return parse_object(read_whole(path, limit, "a JSON file"), path)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    if sum(n * data.count(mark) for mark, n in MARKS.items()) > MAX_ITEMS:
        raise BadFormat(f"{where}: expected JSON of at most {MAX_ITEMS} items, found more")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except _Twice as error:
        raise BadFormat(f"{where}: the name {shown(error.args[0])} stands twice in one JSON object") from None
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        raise BadFormat(f"{where}: cannot be read as JSON; it was cut short or damaged, copy it again") from None
    except MemoryError:
        raise BadFormat(f"{where}: asks for more memory than there is") from None
    if type(value) is not dict:
        raise BadFormat(f"{where}: expected a JSON object, found {shown(value)}")
    return value


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Twice(name)
            seen.add(name)
    return result
