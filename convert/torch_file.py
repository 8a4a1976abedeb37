"""Reads what torch.save wrote, without torch: the zip of torch >= 1.6 and the older stream. Owns storages and tensors.

Tensors are lazy: of a file only the ranges that are asked for are read, a few megabytes at a time. Nothing from the
file runs (see unpickle.py). It knows no model: names and meanings belong to the sources.

    zip:     <root>/data.pkl | <root>/data/<key>: raw storages, not compressed | <root>/byteorder
    stream:  pickles: magic, 1001, sys_info, the object, [key, ..] | for each key: int64 count, raw storage
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from pygpt._lib import BadFormat, Error

from . import unpickle
from .tensor_file import TensorFile
from .unpickle import Damaged, Global, Stub, shown

CHUNK = 4 << 20  # bytes of float32 that are in memory at a time
MAX_SIZE = 1 << 56  # of the other dimensions of an empty tensor together: beyond it numpy makes none
MAX_DIRECTORY = 16 << 20  # of a zip; 100 bytes are usual for a tensor, and an entry takes 700 in memory
# what zipfile raises on damaged files
NOT_A_ZIP = (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError, OverflowError, IndexError,
             OSError, MemoryError)  # fmt: skip
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"

DTYPES = {  # class of the storage: name, numpy's type of the raw bytes
    "FloatStorage": ("float32", "f4"),
    "DoubleStorage": ("float64", "f8"),
    "HalfStorage": ("float16", "f2"),
    "BFloat16Storage": ("bfloat16", "u2"),
    "LongStorage": ("int64", "i8"),
    "IntStorage": ("int32", "i4"),
    "ShortStorage": ("int16", "i2"),
    "CharStorage": ("int8", "i1"),
    "ByteStorage": ("uint8", "u1"),
    "BoolStorage": ("bool", "u1"),
}


@dataclass(eq=False)
class Storage:
    """A run of numbers in the file."""

    file: TensorFile
    key: str
    dtype: str
    raw: np.dtype
    count: int
    position: int = -1  # of the first byte in the file
    crc: int = 0  # 0: none was written
    checked: bool = False

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` elements from element `start` on, as they lie."""
        data = self.file.read(self.position + start * self.raw.itemsize, count * self.raw.itemsize)
        return np.frombuffer(data, self.raw)

    def check(self) -> None:
        """Compares the checksum, once."""
        if self.checked or not self.crc:
            return
        crc, position, end = 0, self.position, self.position + self.count * self.raw.itemsize
        while position < end:
            size = min(CHUNK, end - position)
            crc = zlib.crc32(self.file.read(position, size), crc)
            position += size
        if crc != self.crc:
            raise BadFormat(
                f"{self.file.path}: the checksum of storage {self.key} is {self.crc:08x}, its bytes give {crc:08x}; "
                "the file is damaged, copy it again"
            )
        self.checked = True


@dataclass(eq=False)
class Tensor:
    """A view of a storage; nothing is read until `blocks` or `array` is called."""

    storage: Storage
    offset: int  # in elements, as are the strides
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    name: str = field(default="a tensor")

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.storage.dtype in ("float32", "float64", "float16", "bfloat16")

    def is_same_memory(self, other: Tensor) -> bool:
        mine, its = ((t.storage.key, t.offset, t.shape, t.stride) for t in (self, other))
        return mine == its

    def check(self) -> None:
        """What must hold before the numbers are worth reading: that there are as many, and their checksum."""
        if self.size > self.storage.count:
            raise BadFormat(
                f"{self.storage.file.path}: {self.name} has {self.size} numbers by its shape {list(self.shape)}, "
                f"but its storage holds {self.storage.count}; a trained weight has memory of its own"
            )
        if prod(filter(None, self.shape)) > MAX_SIZE:
            raise BadFormat(f"{self.storage.file.path}: {self.name} has the shape {list(self.shape)}, which cannot be")
        self.storage.check()

    def blocks(self) -> Iterator[np.ndarray]:
        """The tensor as float32 [rows, width], a few megabytes at a time. Views with strides are read whole."""
        self.check()
        if not self.size:
            return
        width = self.shape[-1] if self.shape else 1
        rows = self.size // width
        step = max(1, CHUNK // (4 * width))
        view = None if self._is_contiguous() else self._strided().reshape(rows, width)
        for row in range(0, rows, step):
            n = min(step, rows - row)
            if view is None:
                raw = self.storage.read(self.offset + row * width, n * width).reshape(n, width)
            else:
                raw = np.ascontiguousarray(view[row : row + n])
            yield self._floats(raw)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Some rows as float32 [count, width]; a vector has rows of one number."""
        width = self.size // self.shape[0]
        if self._is_contiguous():
            return self._floats(self.storage.read(self.offset + start * width, count * width).reshape(count, width))
        return self._floats(self._strided()[start : start + count].reshape(count, width))

    def transposed(self) -> Tensor:
        return Tensor(self.storage, self.offset, self.shape[::-1], self.stride[::-1], self.name)

    def array(self) -> np.ndarray:
        """The whole tensor as float32, or in its own type when it holds no floating-point numbers."""
        self.check()
        raw = self._strided()
        return self._floats(raw) if self.is_float else raw

    def _is_contiguous(self) -> bool:
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and stride != expected:
                return False
            expected *= n
        return True

    def _strided(self) -> np.ndarray:
        if not self.size:
            return np.zeros(self.shape, self.storage.raw)
        steps = [stride if n > 1 else 0 for n, stride in zip(self.shape, self.stride, strict=True)]  # else any will do
        last = sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))
        raw = self.storage.read(self.offset, last + 1)
        strides = [step * raw.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(raw, self.shape, strides, writeable=False)

    def _floats(self, raw: np.ndarray) -> np.ndarray:
        if self.storage.dtype == "bfloat16":  # the upper half of a float32
            return (raw.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite, which whoever wants numbers refuses
            return raw.astype(np.float32)


class _Directory:
    """A file as zipfile reads the directory from it: at once and whatever its size, which is limited here."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.seek, self.tell = file._file.seek, file._file.tell

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise self.file.damaged(f"its zip has a directory of {size} bytes, at most {MAX_DIRECTORY} are expected")
        return self.file._file.read(size)


def is_torch_file(path: str) -> bool:
    """By its first bytes."""
    with open(path, "rb") as file:
        return file.read(len(LEGACY_MAGIC)).startswith((ZIP_MAGIC, LEGACY_MAGIC))


class TorchFile(TensorFile):
    """An open file of torch.save: `value` is the object in it, with `Tensor`s where tensors were."""

    WRITER = "torch.save"

    def read_contents(self) -> None:
        self.storages: dict[tuple[str, str, int], Storage] = {}
        self._zip: dict[str, zipfile.ZipInfo] | None = None  # entries by their names below the root; None: a stream
        self._order = "<"
        magic = self._file.read(len(LEGACY_MAGIC))
        if magic.startswith(ZIP_MAGIC):
            self._zip = self._open_zip()
            if "byteorder" in self._zip and self._zip_entry("byteorder", 16) == b"big":
                self._order = ">"
            self.value = self._load(io.BytesIO(self._zip_entry("data.pkl", unpickle.MAX_BYTES)))
        elif magic == LEGACY_MAGIC:
            self.value = self._load_stream()
        else:
            raise BadFormat(
                f"{self.path}: not a file of torch.save: expected a zip or torch's older stream, "
                f"found the bytes {magic[:8].hex(' ') or '(none: the file is empty)'}"
            )

    # ---- the pickle inside

    def _load(self, stream: io.BytesIO) -> object:
        known = {
            **unpickle.PLAIN,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
        }
        try:
            return unpickle.unpickle(stream, known, self._storage)
        except Damaged as error:
            raise self.damaged(error) from None

    def _storage(self, pid: object) -> Storage | Stub:
        """A persistent id: ('storage', class, key, device, count), in streams with None for a view."""
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return Stub(pid[1], pid)  # in streams: a class of the model, with its source code
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Damaged("refers to outside data that is no storage")
        _, kind, key, _, count = pid[:5]
        if type(kind) is not Global or type(key) is not str or type(count) is not int or pid[5:] not in ((), (None,)):
            raise Damaged("holds a storage whose description is not understood")
        if kind.module != "torch" or kind.name not in DTYPES:
            return Stub(kind, pid)  # complex and 8-bit numbers: no weight of a known model
        dtype, raw = DTYPES[kind.name]
        if (key, dtype, count) not in self.storages:
            storage = Storage(self, key, dtype, np.dtype("<" + raw), count)
            if not 0 <= count <= self.bytes // storage.raw.itemsize:
                raise Damaged(f"claims {shown(count)} numbers for storage {shown(key)}, more than the file holds")
            if self._zip is not None:
                self._place(storage)
            self.storages[key, dtype, count] = storage
        return self.storages[key, dtype, count]

    def _tensor(self, storage: object, offset: object, shape: object, stride: object, *_: object) -> Tensor | Stub:
        if type(storage) is Stub:
            return storage
        if type(storage) is not Storage:
            raise Damaged("holds a tensor without a storage")
        numbers = (offset, *shape, *stride) if type(shape) is tuple and type(stride) is tuple else (None,)
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or len(shape) != len(stride) or len(shape) > 8:
            raise Damaged("holds a tensor whose offset, shape or stride is negative or no number")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 not in shape and last >= storage.count:
            raise Damaged(
                f"holds a tensor of shape {list(shape)} that ends at element {last + 1} of a storage of {storage.count}"
            )
        return Tensor(storage, offset, shape, stride)

    def _parameter(self, tensor: object, *_: object) -> object:
        return tensor

    def _from_type(self, function: object, kind: object, args: object, *_: object) -> object:
        """A tensor with attributes of its own, which are dropped."""
        name = (function.module, function.name) if type(function) is Global else None
        if name == ("torch._utils", "_rebuild_tensor_v2") and type(args) is tuple:
            return self._tensor(*args)
        return unpickle.Stub(function, args)

    # ---- the zip

    def _open_zip(self) -> dict[str, zipfile.ZipInfo]:
        """The entries by their names below the root folder."""
        try:
            with zipfile.ZipFile(_Directory(self)) as archive:
                infos = archive.infolist()
        except Error:
            raise
        except NOT_A_ZIP:
            raise BadFormat(
                f"{self.path}: begins as a zip of torch.save but its directory cannot be read; "
                "it was cut short or damaged, copy it again"
            ) from None
        names = [info.filename for info in infos]
        if len(set(names)) != len(names):
            raise self.damaged("two entries of the zip have one name")
        if any(".." in name.split("/") or name.startswith("/") for name in names):
            raise self.damaged("an entry of the zip has a name that leads out of it")
        roots = [name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise BadFormat(
                f"{self.path}: a zip, but not of torch.save: expected one folder with a data.pkl, found {len(roots)}"
            )
        root = roots[0]
        entries = {info.filename[len(root) :]: info for info in infos if info.filename.startswith(root)}
        if "constants.pkl" in entries:
            raise BadFormat(f"{self.path}: a TorchScript program; expected a checkpoint, torch.save its state_dict()")
        return entries

    def _zip_range(self, name: str) -> tuple[int, zipfile.ZipInfo]:
        """Where an entry's bytes begin."""
        info = self._zip.get(name)
        if info is None:
            raise Damaged(f"has no entry {shown(name)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise Damaged(
                f"stores {shown(name)} compressed, which torch.save never does (unpack it and zip it again with zip -0)"
            )
        if info.header_offset < 0 or info.header_offset + 30 > self.bytes:
            raise Damaged(f"has its entry {shown(name)} outside of the file")
        header = self.read(info.header_offset, 30)
        n_name, n_extra = struct.unpack("<HH", header[26:])
        position = info.header_offset + 30 + n_name + n_extra
        if header[:4] != ZIP_MAGIC or position + info.file_size > self.bytes:
            raise Damaged(f"has its entry {shown(name)} outside of the file")
        return position, info

    def _zip_entry(self, name: str, limit: int) -> bytes:
        try:
            position, info = self._zip_range(name)
        except Damaged as error:
            raise self.damaged(error) from None
        if info.file_size > limit:
            raise self.damaged(f"{name} has {info.file_size} bytes, at most {limit} are expected")
        data = self.read(position, info.file_size)
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise self.damaged(f"the checksum of {name} does not fit its bytes")
        return data

    def _place(self, storage: Storage) -> None:
        position, info = self._zip_range("data/" + storage.key)
        if info.file_size != storage.count * storage.raw.itemsize:
            raise Damaged(
                f"claims {storage.count} numbers of {storage.dtype} for storage {shown(storage.key)}, "
                f"which has {info.file_size} bytes"
            )
        storage.position, storage.crc = position, info.CRC
        storage.raw = storage.raw.newbyteorder(self._order)

    # ---- the older stream

    def _load_stream(self) -> object:
        self._file.seek(0)
        stream = io.BytesIO(self._file.read(min(self.bytes, unpickle.MAX_BYTES)))
        try:
            unpickle.unpickle(stream)  # the magic number
            if unpickle.unpickle(stream) != 1001:
                raise self.damaged("not a stream of protocol 1001")
            unpickle.unpickle(stream)  # the machine that wrote it; storages are little-endian on all
        except Damaged as error:
            raise self.damaged(error) from None
        value = self._load(stream)
        try:
            keys = unpickle.unpickle(stream)
        except Damaged as error:
            raise self.damaged(error) from None
        if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
            raise self.damaged("the list of storages is no list of names")
        position = stream.tell()
        for key in keys:
            position = self._place_in_stream(key, position)
        if position != self.bytes:
            raise self.damaged(f"{position} bytes were expected, the file has {self.bytes}")
        for storage in self.storages.values():
            if storage.position < 0:
                raise self.damaged(f"storage {shown(storage.key)} is not in the file")
        return value

    def _place_in_stream(self, key: str, position: int) -> int:
        mine = [storage for storage in self.storages.values() if storage.key == key]
        if not mine:
            raise self.damaged(f"storage {shown(key)} belongs to no tensor of a known type")
        (count,) = struct.unpack("<q", self.read(position, 8))
        if any(storage.count != count or storage.raw.itemsize != mine[0].raw.itemsize for storage in mine):
            raise self.damaged(f"storage {shown(key)} has {count} numbers, its tensors expect {mine[0].count}")
        for storage in mine:
            storage.position = position + 8
        return position + 8 + count * mine[0].raw.itemsize
