"""A file that is a header and numbers, without names: tensors lie one behind the other, in an order that is known.

    | header | numbers of the first tensor | numbers of the second | ..

It knows no model: who does names the tensors as they come. They are read when they are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pygpt._lib import BadFormat

from .tensor_file import TensorFile
from .torch_file import Storage, Tensor

RAW = {"float32": "f4", "bfloat16": "u2"}  # numpy's type of the raw bytes


@dataclass(eq=False)
class Groups(Storage):
    """int8 numbers, and behind them all a float32 for each `group` of them that they are multiplied by."""

    group: int = 1

    def read(self, start: int, count: int) -> np.ndarray:
        first, end = start // self.group, -(-(start + count) // self.group)
        values = np.frombuffer(self.file.read(self.position + start, count), np.int8)
        behind = self.position + self.count
        scales = np.frombuffer(self.file.read(behind + 4 * first, 4 * (end - first)), "<f4")
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise BadFormat(
                f"{self.file.path}: expected a scale for each {self.group} numbers of {self.key} behind them, found "
                "bytes that are none; it is damaged, or from the days when all scales stood at the end: export it again"
            )
        skipped = start - first * self.group
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite, which whoever wants numbers refuses
            return values * np.repeat(scales, self.group)[skipped : skipped + count]


class RawFile(TensorFile):
    """An open file. `place` names what comes next, from the byte `end` on."""

    def read_contents(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.end = 0

    def numbers(self, kind: str, n: int) -> list[Any]:
        """The n numbers that come next, of numpy's type `kind`."""
        size = n * np.dtype(kind).itemsize
        self.end += size
        return np.frombuffer(self.read(self.end - size, size), kind).tolist()

    def place(self, name: str, shape: tuple[int, ...], dtype: str = "float32", group: int = 0) -> Tensor:
        """The tensor that comes next. group: it is int8, with a scale for so many numbers."""
        n = prod(shape)
        if group:
            storage: Storage = Groups(self, name, dtype, np.dtype("i1"), n, self.end, group=group)
        else:
            storage = Storage(self, name, dtype, np.dtype("<" + RAW[dtype]), n, self.end)
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        self.tensors[name] = tensor = Tensor(storage, 0, shape, stride, name)
        self.end += n * storage.raw.itemsize + (n // group * 4 if group else 0)
        return tensor
