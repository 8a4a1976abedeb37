"""A file whose tensors are read when they are wanted: its size is known, missing bytes end in a sentence."""

from __future__ import annotations

import os
from typing import BinaryIO, TypeVar

from pygpt._lib import BadFormat, Error

File = TypeVar("File", bound="TensorFile")


class TensorFile:
    """An open file; `read_contents`, which each format has its own of, is called once it is."""

    WRITER = "its program"  # what writes such files, for errors

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file: BinaryIO = open(path, "rb")
        try:
            self.bytes = os.fstat(self._file.fileno()).st_size
            self.read_contents()
        except BaseException:
            self.close()
            raise

    def read_contents(self) -> None:
        raise NotImplementedError

    def __enter__(self: File) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) != size:
            raise BadFormat(
                f"{self.path}: {size} bytes were expected at {position}, the file has {len(data)} there; "
                "it was cut short, copy it again"
            )
        return data

    def damaged(self, what: object) -> Error:
        return BadFormat(f"{self.path}: {what}; the file is damaged or was not written by {self.WRITER}")
