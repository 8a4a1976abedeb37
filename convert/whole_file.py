"""Reads small files at once, up to a limit that no such file has reason to pass."""

from __future__ import annotations

import os

from pygpt._lib import BadFormat, NotFound, Unreadable


def read_whole(path: str, limit: int, what: str) -> bytes:
    """The bytes of a file, which is expected to be `what`."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        size = os.path.getsize(path)
        raise BadFormat(f"{path}: expected {what} of at most {limit >> 20} MB, found {size >> 20} MB")
    return data
