"""Claims the tensors of a checkpoint one by one: each with its shape, and at the end none may be left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np

from pygpt._lib import BadFormat, Unsupported

from .torch_file import Tensor
from .unpickle import shown

Row = tuple[str, str, str]  # name in the checkpoint, name in GGUF, a letter for each size of its shape


class Claims:
    """The tensors of one model. source: its name, for sentences; said_by: what the expected shapes come from."""

    def __init__(self, path: str, weights: Mapping[str, Tensor], source: str, said_by: str) -> None:
        self.path, self.weights, self.source, self.said_by = path, weights, source, said_by
        self._claimed: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.weights.get(name)
        if tensor is None:
            raise BadFormat(
                f"{self.path}: expected a tensor {name}, as {self.source} has it, found none; was the file saved whole?"
            )
        if tensor.shape != shape:
            raise BadFormat(
                f"{self.path}: expected {name} to have shape {list(shape)} by {self.said_by}, "
                f"found {list(tensor.shape)}"
            )
        if not tensor.is_float:
            raise BadFormat(
                f"{self.path}: expected {name} to hold floating-point numbers, found {tensor.storage.dtype}"
            )
        tensor.check()
        self._claimed[name] = tensor
        return tensor

    def take_rows(
        self, rows: Iterable[Row], sizes: Mapping[str, int], theirs: str = "", ours: str = ""
    ) -> dict[str, Any]:
        """The tensors of a table, by their GGUF names. theirs, ours: what stands before the names."""
        return {
            ours + to: self.take(theirs + name, tuple(sizes[letter] for letter in letters))
            for name, to, letters in rows
        }

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """No tensor may be left, but those whose names end in one of `ignored`; and shapes cannot claim more numbers
        than the file has bytes."""
        left = [name for name in self.weights if name not in self._claimed and not name.endswith(ignored or ("\0",))]
        if left:
            raise Unsupported(
                f"{self.path}: expected the tensors of {self.source} and nothing else, found {shown(left[0])} and "
                f"{len(left) - 1} more; a changed model would come out wrong"
            )
        files = {tensor.storage.file for tensor in self._claimed.values()}
        n_claimed, n_bytes = sum(t.size for t in self._claimed.values()), sum(file.bytes for file in files)
        if n_claimed > n_bytes:  # tensors that share their memory
            have = "the file has" if os.path.isfile(self.path) else "the files hold"
            raise BadFormat(
                f"{self.path}: its weights are {n_claimed} numbers by their shapes, but {have} only {n_bytes} bytes"
            )


def is_same(a: Tensor, b: Tensor) -> bool:
    """Do two tensors hold the same numbers?"""
    if a.shape != b.shape:
        return False
    is_tied = a.storage is b.storage and a.is_same_memory(b)  # the keys of two shards may be alike
    return is_tied or all(np.array_equal(x, y) for x, y in zip_longest(a.blocks(), b.blocks()))
