"""The text that a converted model is tried on: the user's, what it was trained on, or the page that ships."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources

from pygpt._lib import BadFormat, Error

from .characters import unreadable
from .checkpoint import Checkpoint, Options

MOST = 1 << 16  # bytes


@dataclass
class Text:
    name: str  # for people
    text: str


def find_text(checkpoint: Checkpoint, options: Options) -> Text:
    """What the user named must be readable; what was found beside the checkpoint need not."""
    if options.text:
        return Text(os.path.basename(options.text), read_end(options.text))
    if path := checkpoint.vocabulary.sample:
        try:
            if text := read_end(path):
                return Text(os.path.basename(path), text)
        except Error:
            pass
    shipped = resources.files("pygpt").joinpath("data", "english.txt")
    return Text("pygpt's English sample", shipped.read_text(encoding="utf-8"))


def read_end(path: str, most: int = MOST) -> str:
    """The last tenth, which training usually leaves out, or more of it where that is short; from the begin of a line.

    Empty where there is nothing: a pipe, for one, has been read already.
    """
    try:
        with open(path, "rb") as file:
            begin = 0
            if file.seekable():
                size = file.seek(0, os.SEEK_END)
                begin = min(size * 9 // 10, max(0, size - most))
                file.seek(begin)
            data = file.read(most)
    except OSError as error:
        raise unreadable(path, error) from None
    rest = data.partition(b"\n")[2]
    if begin and rest.strip():
        data = rest
    text = data.decode("utf-8", "ignore")
    if data and not text:
        raise BadFormat(f"{path}: expected text in UTF-8, found none")
    return text if text.strip() else ""
