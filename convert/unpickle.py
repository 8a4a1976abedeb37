"""Reads pickles without running them: plain containers and numbers come out, everything else becomes inert.

A name in the file is only ever a name (`Global`); calling it makes a `Stub` that remembers function, arguments and
state. The few functions that do run are in a table and our own. Work, memory and hashing are bounded.
"""

from __future__ import annotations

import io
import os
import pickletools
import stat
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pygpt._lib import BadArgument, BadFormat, Error

MAX_BYTES = 64 << 20  # of one pickle; nanoGPT's largest has about 100 KB, a vocabulary of all of Unicode 20 MB
MAX_WORK = 4_000_000  # opcodes, plus the elements that calls copy; about 4 seconds
MAX_CONTAINERS = 500_000  # and names; empty ones cost one byte in the file and 200 in memory
MAX_INT_KEY = 1 << 60  # below, integers never share a hash: no quadratic dictionaries
MAX_NAME = 100  # characters of a name in a sentence


class Global:
    """A name that the file mentions. It is never looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        """As a sentence may show it."""
        text = f"{self.module[:MAX_NAME]}.{self.name[:MAX_NAME]}"
        return "".join(c if c.isprintable() else "?" for c in text)


class Stub:
    """What a call in the file would have made: an object of an unknown class, kept as its ingredients."""

    __slots__ = ("args", "function", "items", "state")

    def __init__(self, function: object, args: object) -> None:
        self.function, self.args = function, args
        self.state: object = None
        self.items: list[object] = []  # what was appended, and (key, value) of what was set


def class_of(stub: Stub) -> Global | None:
    """The class of an object; None: the file calls something else.

    torch's older streams keep a class together with its source code, in a `Stub`.
    """
    function = stub.function.function if type(stub.function) is Stub else stub.function
    return function if type(function) is Global else None


class Key:
    """Stands in a dictionary or set for what Python could not hash, or only at a price that the file chooses."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Damaged(Exception):
    """What is wrong with a pickle, as the middle of a sentence."""


def shown(value: object) -> str:
    """A value from a file as a sentence may show it."""
    if type(value) in (bool, int, float, type(None)):
        text = str(value) if type(value) is not int or abs(value) < 1 << 64 else "a huge number"
    elif type(value) is str:
        text = repr(value)
    elif type(value) is Stub:
        text = f"an object of {class_of(value) or 'an unknown class'}"
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def hashable(value: object) -> Any:
    if type(value) in (str, bytes, bool, type(None), Global, Stub):
        return value
    if type(value) is int and -MAX_INT_KEY < value < MAX_INT_KEY:
        return value
    return Key(value)


def make_dict(pairs: object = ()) -> dict[Any, object]:
    if type(pairs) is dict:
        return dict(pairs)
    result: dict[Any, object] = {}
    for pair in pairs:  # type: ignore[attr-defined]
        key, value = pair
        result[hashable(key)] = value
    return result


def make_set(items: object = ()) -> set[Any]:
    return {hashable(item) for item in items}  # type: ignore[attr-defined]


def make_bytes(text: object, encoding: object = "latin1") -> bytes:
    """`_codecs.encode`: how protocol 2 spells bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError
    return text.encode("latin-1")


PLAIN: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): make_dict,
    ("builtins", "dict"): make_dict,
    ("__builtin__", "dict"): make_dict,
    ("builtins", "set"): make_set,
    ("__builtin__", "set"): make_set,
    ("builtins", "frozenset"): make_set,
    ("__builtin__", "frozenset"): make_set,
    ("_codecs", "encode"): make_bytes,
}


def unpickle(
    stream: io.BytesIO,
    known: Mapping[tuple[str, str], Callable[..., object]] = PLAIN,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """The object of the next pickle in `stream`, which is left behind its last byte. Raises `Damaged`."""
    try:
        return _Machine(known, persistent).run(stream)
    except Error:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, EOFError, struct.error, Warning):
        raise Damaged("is not a valid pickle") from None
    except MemoryError:
        raise Damaged("asks for more memory than there is") from None


def read_pickle(path: str) -> object:
    """The object in a file that holds one pickle."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # others have no size to go by, and some no end
        raise BadArgument(f"{path}: is no ordinary file; expected one that pickle.dump has written")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise BadFormat(
                f"{path}: expected a pickle of at most {MAX_BYTES >> 20} MB, found a file of {size >> 20} MB"
            )
        data = file.read(size)
    try:
        return unpickle(io.BytesIO(data))
    except Damaged as error:
        raise BadFormat(f"{path}: {error}; was it written by pickle.dump and copied whole?") from None


# Opcodes whose argument is the value itself.
_VALUES = frozenset(
    """INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8""".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The pickle machine of the standard library's `pickle._Unpickler`, without its power."""

    def __init__(
        self, known: Mapping[tuple[str, str], Callable[..., object]], persistent: Callable[[object], object] | None
    ) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each MARK
        self.memo: dict[int, object] = {}
        self.work = self.containers = 0

    def run(self, stream: io.BytesIO) -> object:
        for opcode, arg, _ in pickletools.genops(stream):
            self.spend(1)
            name = opcode.name
            if name in _VALUES:
                self.stack.append(arg)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self.push_container(_EMPTY[name]())
            elif name in _TUPLES:
                items = tuple(self.pop() for _ in range(_TUPLES[name]))
                self.push_container(items[::-1])
            elif name == "STOP":
                return self.pop()
            else:
                operation = getattr(self, "op_" + name.lower(), None)
                if operation is None:
                    raise Damaged(f"uses the pickle instruction {name}, which no checkpoint needs")
                operation(arg)
        raise Damaged("ends early")

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise Damaged(f"is a pickle of more than {MAX_WORK} steps, which no checkpoint needs")

    def push_container(self, value: object) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise Damaged(
                f"is a pickle of more than {MAX_CONTAINERS} lists, dictionaries and names, which no checkpoint needs"
            )
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    # ---- stack and memo

    def op_proto(self, version: int) -> None:
        if version > 5:
            raise Damaged(f"is a pickle of protocol {version}, known are 0 to 5")

    def op_frame(self, size: int) -> None:
        pass

    def op_mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []
        self.containers += 1  # 56 bytes each
        if self.containers > MAX_CONTAINERS:
            raise Damaged(f"is a pickle of more than {MAX_CONTAINERS} marks, which no checkpoint needs")

    def op_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self, _: None) -> None:
        self.pop_mark()

    def op_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def op_put(self, index: int) -> None:
        if not 0 <= index < MAX_INT_KEY:
            raise Damaged(f"numbers an object with {shown(index)}, which no pickle does")
        self.memo[index] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_binget = op_long_binget = op_get

    # ---- containers

    def op_tuple(self, _: None) -> None:
        self.push_container(tuple(self.pop_mark()))

    def op_list(self, _: None) -> None:
        self.push_container(self.pop_mark())

    def op_dict(self, _: None) -> None:
        items = self.pop_mark()
        self.push_container({})
        self.set_items(items)

    def op_frozenset(self, _: None) -> None:
        self.push_container(make_set(self.pop_mark()))

    def op_append(self, _: None) -> None:
        self.add_items([self.pop()])

    def op_appends(self, _: None) -> None:
        self.add_items(self.pop_mark())

    op_additems = op_appends

    def op_setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def op_setitems(self, _: None) -> None:
        self.set_items(self.pop_mark())

    def add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(hashable(item) for item in items)
        elif type(target) is Stub:
            target.items.extend(items)
        else:
            raise Damaged("appends to what is no list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise Damaged("sets a key without a value")
        pairs = zip(items[::2], items[1::2], strict=True)
        if type(target) is dict:
            for key, value in pairs:
                target[hashable(key)] = value
        elif type(target) is Stub:
            target.items.extend(pairs)
        else:
            raise Damaged("sets a key of what is no dictionary")

    # ---- names, calls and objects: where a pickle would run code, and here does not

    def op_global(self, arg: str) -> None:
        module, name = arg.split(" ", 1)
        self.push_container(Global(module, name))

    def op_stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise Damaged("names a class by what is no text")
        self.push_container(Global(module, name))

    def op_reduce(self, _: None) -> None:
        args, function = self.pop(), self.pop()
        self.call(function, args)

    op_newobj = op_reduce

    def op_newobj_ex(self, _: None) -> None:
        kwargs, args, function = self.pop(), self.pop(), self.pop()
        self.call(function, args if not kwargs else Stub(args, kwargs))

    def op_inst(self, arg: str) -> None:
        args = tuple(self.pop_mark())
        self.op_global(arg)
        self.call(self.pop(), args)

    def op_obj(self, _: None) -> None:
        function, *args = self.pop_mark()
        self.call(function, tuple(args))

    def call(self, function: object, args: object) -> None:
        known = self.known.get((function.module, function.name)) if type(function) is Global else None
        if known is None:
            self.push_container(Stub(function, args))
            return
        if type(args) is not tuple:
            raise Damaged(f"calls {function} without arguments")
        self.spend(sum(len(arg) for arg in args if type(arg) in (str, bytes, tuple, list, dict, set)))
        self.push_container(known(*args))

    def op_build(self, _: None) -> None:
        state = self.pop()
        if type(self.stack[-1]) is Stub:
            self.stack[-1].state = state  # of others (a state_dict's _metadata) nothing is wanted

    # ---- storages

    def op_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise Damaged("refers to data outside of it")
        self.stack.append(self.persistent(self.pop()))

    def op_persid(self, pid: str) -> None:
        self.stack.append(pid)
        self.op_binpersid(None)
