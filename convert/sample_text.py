"""The text that a converted model is tried on: the user's, what it was trained on, or the page that ships."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from importlib import resources

from pygpt._lib import BadFormat, Error

from .characters import unreadable
from .checkpoint import Checkpoint, Options

MOST = 1 << 17  # bytes


@dataclass
class Text:
    name: str  # for people
    text: str
    was_trained_on: bool = True  # as far as is known


def find_text(checkpoint: Checkpoint, options: Options) -> Text:
    """What the user named must be readable; what was found beside the checkpoint need not."""
    if options.text:
        was_read = options.text == checkpoint.vocabulary.sample and stat.S_ISFIFO(os.stat(options.text).st_mode)
        return Text(os.path.basename(options.text), "" if was_read else read_begin(options.text))
    if path := checkpoint.vocabulary.sample:
        try:
            if text := read_begin(path):
                return Text(os.path.basename(path), text)
        except Error:
            pass
    shipped = resources.files("pygpt").joinpath("data", "english.txt")
    return Text("pygpt's English sample", shipped.read_text(encoding="utf-8"), was_trained_on=False)


def read_begin(path: str, most: int = MOST) -> str:
    """The begin of a text, whole lines. Training leaves out the end of it, if anything.

    On what it was not trained on a model is too sure of itself, and whatever softens what it computes looks better than
    it is.

    Empty where there is nothing: a pipe, for one, has been read already.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) == most:
        data = data[: data.rfind(b"\n") + 1] or data
    text = data.decode("utf-8", "ignore")
    if data and not text:
        raise BadFormat(f"{path}: expected text in UTF-8, found none")
    return text if text.strip() else ""
