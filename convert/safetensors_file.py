"""Reads a file of safetensors, without that package: its header, and tensors that are read when they are wanted.

    | u64 n | n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, ..} | data |

Offsets count from the first byte of the data. The format allows no holes and no overlaps, so neither does the reader.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from pygpt._lib import BadFormat

from .json_file import parse_object
from .tensor_file import TensorFile
from .torch_file import Storage, Tensor
from .unpickle import shown

MAX_HEADER = 32 << 20  # about 100 bytes per tensor; the format itself allows 100 MB

DTYPES = {  # name in the header: our name, numpy's type of the raw bytes
    "F64": ("float64", "f8"),
    "F32": ("float32", "f4"),
    "F16": ("float16", "f2"),
    "BF16": ("bfloat16", "u2"),
    "I64": ("int64", "i8"),
    "I32": ("int32", "i4"),
    "I16": ("int16", "i2"),
    "I8": ("int8", "i1"),
    "U64": ("uint64", "u8"),
    "U32": ("uint32", "u4"),
    "U16": ("uint16", "u2"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "u1"),
    "F8_E4M3": ("float8_e4m3", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "F8_E8M0": ("float8_e8m0", "u1"),
}


class SafetensorsFile(TensorFile):
    """An open file of safetensors: `tensors` by their names."""

    WRITER = "safetensors"

    def read_contents(self) -> None:
        self.tensors = self._read_header()

    def _read_header(self) -> dict[str, Tensor]:
        length = int.from_bytes(self._file.read(8), "little")
        if self.bytes < 10 or length > self.bytes - 8:
            raise self.damaged(f"a header of {length} bytes does not fit into a file of {self.bytes}")
        if length > MAX_HEADER:
            raise self.damaged(f"has a header of {length} bytes, at most {MAX_HEADER} are expected")
        header = parse_object(self.read(8, length), f"{self.path}: its header")
        header.pop("__metadata__", None)
        tensors = {name: self._tensor(name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length
        for tensor in sorted(tensors.values(), key=lambda t: (t.storage.position, t.size)):
            if tensor.storage.position != end:
                how = "overlaps another" if tensor.storage.position < end else "leaves a hole before it"
                raise self.damaged(f"the tensor {shown(tensor.name)} {how}")
            end += tensor.size * tensor.storage.raw.itemsize
        if end != self.bytes:
            what = "it was cut short, copy it again" if end > self.bytes else "there is more than its header says"
            raise BadFormat(f"{self.path}: expected {end} bytes, found {self.bytes}; {what}")
        return tensors

    def _tensor(self, name: str, entry: Any, data: int) -> Tensor:
        fields = [entry.get(key) for key in ("dtype", "shape", "data_offsets")] if type(entry) is dict else [None] * 3
        dtype, shape, offsets = fields
        if type(dtype) is not str or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
            raise self.damaged(f"the entry of the tensor {shown(name)} is not understood")
        if dtype not in DTYPES:
            raise self.damaged(f"the tensor {shown(name)} has numbers of the unknown type {shown(dtype)}")
        kind, raw = DTYPES[dtype]
        storage = Storage(self, name, kind, np.dtype("<" + raw), prod(shape), data + offsets[0])
        if storage.count * storage.raw.itemsize != offsets[1] - offsets[0]:
            raise self.damaged(
                f"the tensor {shown(name)} of shape {shown(str(shape))} and type {dtype} "
                f"has {offsets[1] - offsets[0]} bytes by its offsets"
            )
        stride = [prod(shape[i + 1 :]) for i in range(len(shape))]
        return Tensor(storage, 0, tuple(shape), tuple(stride), name)


def _is_sizes(value: Any) -> bool:
    return type(value) is list and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
