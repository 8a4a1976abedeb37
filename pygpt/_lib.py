"""The only file that speaks cffi: codes become exceptions, pointers become objects that free themselves.

Knows nothing of text. numpy is imported by the functions that return arrays, so that generating does not wait for it.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import index
from os import PathLike, fsdecode, fsencode
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    from pygpt._core import ffi, lib
except ModuleNotFoundError as error:  # a source tree on the path instead of the installed package
    raise ImportError(
        f"pygpt's compiled core is missing beside {__file__!r}: install the package with 'pip install .' "
        "(or 'pip install -e .' to work on it), or leave the source folder"
    ) from error

if TYPE_CHECKING:
    import numpy as np

MAX_THREADS = 256
ROWS = 128  # tokens per call into the core, so that Ctrl-C is seen while a long prompt is read

# ---- errors ----------------------------------------------------------------------------------------------------------


class Error(Exception):
    """Whatever pygpt cannot do, in one sentence. The classes below are also what Python already has a word for."""


class BadArgument(Error, ValueError):
    """An argument that cannot be."""


class OutOfMemory(Error, MemoryError):
    """The memory that was asked for is not there."""


class NotFound(Error, FileNotFoundError):
    """No such file."""


class Unreadable(Error, OSError):
    """A file that cannot be read."""


class BadFormat(Error, ValueError):
    """A file whose bytes contradict its format."""


class Unsupported(Error, ValueError):
    """A correct file of something that is not known here."""


class ContextFull(Error, ValueError):
    """More tokens than the context holds."""


ERRORS = {
    lib.GPT_EINVAL: BadArgument,
    lib.GPT_ENOMEM: OutOfMemory,
    lib.GPT_ENOENT: NotFound,
    lib.GPT_EIO: Unreadable,
    lib.GPT_EFORMAT: BadFormat,
    lib.GPT_EUNSUPPORTED: Unsupported,
    lib.GPT_EFULL: ContextFull,
}


def _sentence() -> str:
    text = lib.gpt_last_error()
    return ffi.string(text).decode("utf-8", "replace") if text else "an error without a sentence"


def _check(code: Any) -> Any:
    """Passes a count or a rate on and raises what a negative code stands for."""
    if code < 0:
        raise ERRORS.get(int(code), Error)(_sentence())
    return code


def _text(pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "replace")


def ids_array(ids: Iterable[int]) -> array:
    """Token ids as an array of int32. Anything that Python takes for an integer will do."""
    if isinstance(ids, (bytes, bytearray)):
        raise BadArgument("token ids are a sequence of integers, and this is bytes: decode them to a str")
    if isinstance(ids, array) and ids.typecode == "i":
        return ids
    try:
        return array("i", list(ids))
    except (TypeError, OverflowError) as error:
        raise BadArgument(f"token ids are a sequence of integers, and this is none: {error}") from None


def whole(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """value, if it is a whole number from low to high."""
    try:
        number = index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise BadArgument(f"{name} must be a whole number from {low} to {high}, and {value!r} is not")
    return number


# ---- the machine -----------------------------------------------------------------------------------------------------


def isas() -> dict[str, bool]:
    """The instruction sets that kernels exist for on this family of processors, slowest first: can this one run it?"""
    return {_text(lib.gpt_isa_name(i)): bool(lib.gpt_isa_available(i)) for i in range(lib.gpt_isa_count())}


def isa_current() -> str:
    """The instruction set in use: the best one, or what the environment variable PYGPT_ISA names."""
    name = lib.gpt_isa_current()
    if not name:
        raise BadArgument(_sentence())
    return _text(name)


def cpu_count() -> int:
    """Processors that this process may use."""
    return int(lib.gpt_cpu_count())


def memory() -> tuple[int, int]:
    """Resident bytes of this process: (its own, mapped from files)."""
    own, mapped = ffi.new("int64_t *"), ffi.new("int64_t *")
    _check(lib.gpt_memory(own, mapped))
    return own[0], mapped[0]


def measure_read(threads: int = 0, seconds: float = 0.2) -> float:
    """Bytes per second that `threads` threads (0: every processor) read from memory together."""
    return _check(lib.gpt_measure_read(threads or cpu_count(), seconds))


def measure_mac(threads: int = 0, seconds: float = 0.2) -> float:
    """Multiply-adds of 8-bit integers per second, of the current instruction set."""
    return _check(lib.gpt_measure_mac(threads or cpu_count(), seconds))


# ---- types of weights ------------------------------------------------------------------------------------------------


class Type(NamedTuple):
    """A way to store weights: `block` of them take `bytes` bytes. `id` is the number that GGUF files use."""

    name: str
    id: int
    block: int
    bytes: int


def types() -> dict[str, Type]:
    """The types that can be computed with, by name."""
    row = ffi.new("struct gpt_type *")
    found = {}
    for i in range(lib.gpt_type_count()):
        _check(lib.gpt_type_get(i, row))
        name = _text(row.name)
        found[name] = Type(name, row.id, row.block, row.bytes)
    return found


def type_name(number: int) -> str:
    """The name of GGUF's type of that number, also of types that are known by name only."""
    name = lib.gpt_type_name(number)
    return _text(name) if name else f"type {number}"


def find_type(name: str) -> Type:
    """The type of that name, or an error that lists the names."""
    known = types()
    if name not in known:
        raise BadArgument(f"there is no type {name!r}: choose one of {', '.join(known)}")
    return known[name]


def quantize(weights: np.ndarray, type: str) -> np.ndarray:
    """float32 [..., n] -> uint8 [..., bytes of a row of n weights]. n is a multiple of the type's block."""
    import numpy as np

    kind = find_type(type)
    source = np.ascontiguousarray(weights, dtype=np.float32)
    if source.ndim == 0 or source.shape[-1] % kind.block:
        raise BadArgument(
            f"rows of {source.shape[-1:] or 'no'} weights are no multiple of {kind.block}, as {type} needs"
        )
    out = np.empty(source.shape[:-1] + (source.shape[-1] // kind.block * kind.bytes,), np.uint8)
    if source.size:
        _check(lib.gpt_quantize(kind.id, ffi.from_buffer("float[]", source), source.size, ffi.from_buffer(out)))
    return out


def dequantize(rows: np.ndarray, type: str) -> np.ndarray:
    """uint8 [..., bytes of a row] -> float32 [..., weights of a row]."""
    import numpy as np

    kind = find_type(type)
    source = np.ascontiguousarray(rows, dtype=np.uint8)
    if source.ndim == 0 or source.shape[-1] % kind.bytes:
        raise BadArgument(f"rows of {source.shape[-1:] or 'no'} bytes are no multiple of {kind.bytes}, as {type} needs")
    out = np.empty(source.shape[:-1] + (source.shape[-1] // kind.bytes * kind.block,), np.float32)
    if source.size:
        _check(lib.gpt_dequantize(kind.id, ffi.from_buffer(source), out.size, ffi.from_buffer("float[]", out)))
    return out


# ---- files -----------------------------------------------------------------------------------------------------------

# memoryview formats of GGUF's numbers
FORMATS = {
    lib.GPT_U8: "B",
    lib.GPT_I8: "b",
    lib.GPT_U16: "H",
    lib.GPT_I16: "h",
    lib.GPT_U32: "I",
    lib.GPT_I32: "i",
    lib.GPT_F32: "f",
    lib.GPT_BOOL: "?",
    lib.GPT_U64: "Q",
    lib.GPT_I64: "q",
    lib.GPT_F64: "d",
}
SIZES = {"B": 1, "b": 1, "?": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4, "Q": 8, "q": 8, "d": 8}


class TensorInfo(NamedTuple):
    """A tensor in a file. `shape` is numpy's: the last number is the width of a row."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


class Strings(Sequence[bytes]):
    """An array of strings as bytes, which are cut out when they are asked for: a vocabulary has 10^5 of them."""

    def __init__(self, data: bytes, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """data: each string behind its length, as in the file; starts: where they begin, counted from anywhere."""
        self._data, self._starts, self._lengths = data, starts, lengths

    @staticmethod
    def of(texts: Iterable[str]) -> Strings:
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        starts = list(accumulate((len(part) + 8 for part in parts), initial=8))
        return Strings(b"".join(_behind_length(part) for part in parts), starts, list(map(len, parts)))

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, i: int) -> bytes:  # type: ignore[override]  # no slices
        start = self._starts[i] - self._starts[0] + 8
        return self._data[start : start + self._lengths[i]]

    def __iter__(self) -> Iterator[bytes]:
        end = 0
        for n in self._lengths:
            start, end = end + 8, end + 8 + n
            yield self._data[start:end]

    def find(self, text: bytes) -> int | None:
        """The first place of a string. Reads all bytes: where many are looked for, `places` is faster."""
        wanted, first = _behind_length(text), self._starts[0] if self._lengths else 0
        at = self._data.find(wanted)
        while at >= 0:  # within another string it does not count
            i = bisect_left(self._starts, first + at)
            if i < len(self) and self._starts[i] == first + at:
                return i
            at = self._data.find(wanted, at + 1)
        return None

    def places(self, begin: int = 0, end: int | None = None) -> dict[bytes, int]:
        """The first place of each string, of those from begin to end."""
        places = range(len(self))[begin:end]
        data, at = self._data, self._starts[begin] - self._starts[0] if places else 0
        found = {}
        for i, n in zip(places, self._lengths[begin:end], strict=True):
            start = at + 8
            at = start + n
            found[data[start:at]] = i
        if len(found) < len(places):
            found.update((self[i], i) for i in reversed(places))
        return found


def _behind_length(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


class Keys(Mapping[str, Any]):
    """The keys of a file: numbers, bools, strings, or lists of them, read when they are asked for."""

    def __init__(self, file: File) -> None:
        self._file = file
        row = ffi.new("struct gpt_key *")
        self._index: dict[str, int] = {}
        for i in range(lib.gpt_file_key_count(file._open())):
            _check(lib.gpt_file_key(file._open(), i, row))
            self._index[_text(row.name)] = i

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __getitem__(self, name: str) -> Any:
        row, values = self._values(name)
        return values if row.is_array else values[0]

    def type(self, name: str) -> tuple[int, bool]:
        """(GGUF's number of the value's or the elements' type, is it an array?)"""
        row = ffi.new("struct gpt_key *")
        _check(lib.gpt_file_key(self._file._open(), self._index[name], row))
        return row.type, bool(row.is_array)

    def strings(self, name: str) -> Strings | None:
        """An array of strings without a str for each; None if the value is anything else."""
        if name not in self._index or self.type(name) != (lib.GPT_STRING, True):
            return None
        pointer, i = self._file._open(), self._index[name]
        row = ffi.new("struct gpt_key *")
        _check(lib.gpt_file_key(pointer, i, row))
        text, length = ffi.new("const char *[]", row.count), ffi.new("int64_t[]", row.count)
        _check(lib.gpt_file_strings(pointer, i, text, length))
        if not row.count:
            return Strings(b"", [], [])
        starts, lengths = memoryview(ffi.buffer(text)).cast("N"), memoryview(ffi.buffer(length)).cast("q")
        size = starts[-1] + lengths[-1] - starts[0] + 8
        return Strings(ffi.buffer(row.data, size)[:], starts, lengths)

    def _values(self, name: str) -> tuple[Any, list[Any]]:
        pointer, i = self._file._open(), self._index[name]
        row = ffi.new("struct gpt_key *")
        _check(lib.gpt_file_key(pointer, i, row))
        if row.type == lib.GPT_STRING:
            text, length = ffi.new("const char *[]", row.count), ffi.new("int64_t[]", row.count)
            _check(lib.gpt_file_strings(pointer, i, text, length))
            pairs = zip(ffi.unpack(text, row.count), ffi.unpack(length, row.count), strict=True) if row.count else ()
            return row, [ffi.buffer(t, n)[:].decode("utf-8", "replace") if n else "" for t, n in pairs]
        code = FORMATS[row.type]
        data = ffi.buffer(row.data, row.count * SIZES[code])[:] if row.count else b""
        return row, memoryview(data).cast(code).tolist()


class File:
    """A GGUF file, mapped and checked by the core. A context manager.

    keys: a mapping of name to value; tensors: a dict of name to TensorInfo; data(name): a tensor's bytes.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._attach(_opened(lib.gpt_file_open(_path(path)), lib.gpt_file_close))

    def _attach(self, pointer: Any) -> None:
        self._pointer = pointer
        self.bytes = int(lib.gpt_file_bytes(pointer))
        self.keys = Keys(self)
        self.tensors: dict[str, TensorInfo] = {}
        row = ffi.new("struct gpt_tensor *")
        self._data: dict[str, int] = {}
        for i in range(lib.gpt_file_tensor_count(pointer)):
            _check(lib.gpt_file_tensor(pointer, i, row))
            name = _text(row.name)
            shape = tuple(int(row.shape[d]) for d in reversed(range(row.n_dims)))
            self.tensors[name] = TensorInfo(name, type_name(row.type), shape, int(row.bytes))
            self._data[name] = i

    def _open(self) -> Any:
        if self._pointer is None:
            raise BadArgument("this file is closed")
        return self._pointer

    def data(self, name: str) -> np.ndarray:
        """A copy of the tensor's bytes: uint8 [..., bytes of a row]. The mapped ones leave memory."""
        import numpy as np

        info, row = self.tensors[name], ffi.new("struct gpt_tensor *")
        _check(lib.gpt_file_tensor(self._open(), self._data[name], row))
        flat = np.frombuffer(ffi.buffer(row.data, row.bytes)[:] if row.bytes else b"", np.uint8)
        lib.gpt_file_forget(self._open(), self._data[name])
        return flat.reshape(info.shape[:-1] + (-1,)) if flat.size else flat

    def close(self) -> None:
        self._pointer = None

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(pointer: Any, free: Any, keep: Any = None) -> Any:
    """Owns what a constructor gave: freed when nobody refers to it any more, and `keep` not before it."""
    if pointer == ffi.NULL:
        raise ERRORS.get(lib.gpt_last_code(), Error)(_sentence())
    return ffi.gc(pointer, lambda p: (free(p), keep)[0])


def _path(path: str | PathLike[str]) -> bytes:
    name = fsencode(path)
    if b"\0" in name:
        raise BadArgument(f"a path cannot hold a zero byte: {fsdecode(path)!r}")
    return name


# ---- models, sessions, generators ------------------------------------------------------------------------------------


class ModelInfo(NamedTuple):
    """What a model is made of. `bytes_per_token`: weights that one decoded token reads."""

    architecture: str
    n_vocab: int
    n_ctx: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_embd: int
    n_ff: int
    n_threads: int
    n_params: int
    bytes_per_token: int


class ModelHandle:
    """A mapped model. Closing lets go of it; sessions that still use it keep it alive."""

    def __init__(self, path: str | PathLike[str], threads: int | None) -> None:
        if threads is not None:
            threads = whole("threads", threads, 1, MAX_THREADS)
        self.path = fsdecode(path)
        self._pointer = _opened(lib.gpt_model_open(_path(path), threads or 0), lib.gpt_model_close)
        row = ffi.new("struct gpt_model_info *")
        lib.gpt_model_get_info(self._pointer, row)
        names = ModelInfo._fields[1:]
        self.info = ModelInfo(_text(row.architecture), *(int(getattr(row, name)) for name in names))

    def open(self) -> Any:
        if self._pointer is None:
            raise BadArgument(f"the model {self.path!r} is closed")
        return self._pointer

    def file(self) -> File:
        """The model's file, which lives as long as the model."""
        model, file = self.open(), File.__new__(File)
        file._attach(ffi.gc(ffi.cast("gpt_file *", lib.gpt_model_file(model)), lambda _, keep=model: None))
        return file

    def close(self) -> None:
        self._pointer = None


class SessionHandle:
    """One sequence's keys and values. Two threads that use it at once take turns."""

    def __init__(self, model: ModelHandle, n_ctx: int | None = None) -> None:
        self._begin(model.open(), model.info, n_ctx)

    def _begin(self, model: Any, info: ModelInfo, n_ctx: int | None) -> None:
        self._model, self._info = model, info
        self.n_ctx = info.n_ctx if n_ctx is None else whole("n_ctx", n_ctx, 1, info.n_ctx)
        self.n_vocab = info.n_vocab
        self._pointer = _opened(lib.gpt_session_new(model, 1, self.n_ctx), lib.gpt_session_free, keep=model)
        self._lock = threading.Lock()

    def open(self) -> Any:
        if self._pointer is None:
            raise BadArgument("this session is closed")
        return self._pointer

    def length(self) -> int:
        return _check(lib.gpt_session_length(self.open(), 0))

    def ids(self) -> list[int]:
        """The tokens that the sequence holds."""
        with self._lock:
            pointer = self.open()
            ids = ffi.new("int32_t[]", max(1, _check(lib.gpt_session_length(pointer, 0))))
            return ffi.unpack(ids, n) if (n := _check(lib.gpt_session_tokens(pointer, 0, ids))) else []

    def append(self, ids: array, first: int, logits: Any) -> None:
        """Evaluates ids at the end of the sequence; logits: a writable float32 buffer (len(ids) - first, n_vocab).

        Appends all or, on an error or an interrupt, nothing.
        """
        with self._lock:
            pointer = self.open()
            begin = _check(lib.gpt_session_length(pointer, 0))
            if begin + len(ids) > self.n_ctx:
                raise ContextFull(f"{begin + len(ids)} tokens are more than the context of {self.n_ctx} holds")
            out = ffi.from_buffer("float[]", logits, require_writable=True) if logits is not None else ffi.NULL
            try:
                for i in range(0, len(ids), ROWS):
                    piece = ids[i : i + ROWS]
                    rows = array("i", [v for k, id in enumerate(piece, i) for v in (id, 0, begin + k, k >= first)])
                    target = out + max(i - first, 0) * self.n_vocab if i + len(piece) > first else ffi.NULL
                    _check(lib.gpt_session_eval(pointer, ffi.from_buffer("struct gpt_row[]", rows), len(piece), target))
            except BaseException:
                lib.gpt_session_rewind(pointer, 0, begin)
                raise

    def append_each(self, ids: array, logits: Any) -> None:
        """The same one by one: the logits of each id overwrite those before, in a buffer of n_vocab."""
        with self._lock:
            pointer = self.open()
            begin = _check(lib.gpt_session_length(pointer, 0))
            out = ffi.from_buffer("float[]", logits, require_writable=True)
            row = ffi.new("struct gpt_row *", {"logits": 1})
            for row.position, row.token in enumerate(ids, begin):
                _check(lib.gpt_session_eval(pointer, row, 1, out))

    def rewind(self, length: int) -> None:
        with self._lock:
            _check(lib.gpt_session_rewind(self.open(), 0, whole("the length to rewind to", length, 0)))

    def fork(self) -> SessionHandle:
        """A second one with the same tokens, also after the model was closed."""
        with self._lock:
            pointer, other = self.open(), SessionHandle.__new__(SessionHandle)
            other._begin(self._model, self._info, self.n_ctx)
            _check(lib.gpt_session_copy(pointer, 0, other.open(), 0))
            return other

    def close(self) -> None:
        self._pointer = None


ON_FULL = {"exact": lib.GPT_FULL_EXACT, "jump": lib.GPT_FULL_JUMP, "stop": lib.GPT_FULL_STOP}


class GeneratorHandle:
    """The core's loop of evaluating and sampling, in slices. The session is its own until it is closed."""

    def __init__(self, session: SessionHandle, on_full: str, banned: array, stop: array, **numbers: float) -> None:
        """numbers: the other members of struct gpt_sampling, by name."""
        row = ffi.new("struct gpt_sampling *", {**numbers, "on_full": ON_FULL[on_full]})
        row.banned, row.n_banned = ffi.from_buffer("int32_t[]", banned), len(banned)
        row.stop, row.n_stop = ffi.from_buffer("int32_t[]", stop), len(stop)
        pointer, keep = session.open(), (session.open(), row, row.banned, row.stop, banned, stop)
        self._pointer = _opened(lib.gpt_generator_new(pointer, 0, row), lib.gpt_generator_free, keep=keep)
        self._ids = ffi.new("int32_t[]", 1024)
        self._lock = threading.Lock()

    def open(self) -> Any:
        if self._pointer is None:
            raise BadArgument("this generator is closed")
        return self._pointer

    def feed(self, ids: array) -> None:
        """Reads the prompt, in pieces."""
        with self._lock:
            pointer = self.open()
            for i in range(0, len(ids), ROWS):
                piece = ids[i : i + ROWS]
                _check(lib.gpt_generator_feed(pointer, ffi.from_buffer("int32_t[]", piece), len(piece)))

    def next(self, limit: int, seconds: float) -> list[int]:
        """Up to `limit` ids; comes back after about `seconds`, or when the text has ended."""
        with self._lock:
            n = _check(lib.gpt_generator_next(self.open(), self._ids, min(limit, len(self._ids)), seconds))
            return ffi.unpack(self._ids, n) if n else []

    def running(self) -> bool:
        return lib.gpt_generator_state(self.open()) == lib.GPT_RUNNING

    def ended_by_context(self) -> bool:
        return lib.gpt_generator_state(self.open()) == lib.GPT_ENDED_BY_CONTEXT

    def end_id(self) -> int:
        """The stop id that ended the text last; -1: none has."""
        return lib.gpt_generator_end_id(self.open())

    def close(self) -> None:
        with self._lock:
            self._pointer = None
