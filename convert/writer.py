"""Writes a Checkpoint as GGUF, tensor by tensor: some megabytes of memory, a file that is either complete or absent.

Which type a tensor gets is said in mixtures.py; the bytes of a type are the C core's business, the layout of the file
gguf's. Processors quantize side by side while the next part is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import gguf
import numpy as np

from pygpt._lib import BadFormat, Error, Type, cpu_count, dequantize, quantize, types

from . import mixtures
from .checkpoint import Checkpoint, Weights
from .report import Progress, Report

HALF_MAX = 65504.0  # the largest float16, which is also what the blocks' scales are stored in
THREADS = 8  # at most: each holds a part of a tensor, and more of them would wait for the disk


@runtime_checkable
class Stored(Protocol):
    """Weights of a model file: they have a type already, and are copied where it is the one that they are to have."""

    type: str

    def stored(self) -> Iterator[np.ndarray]: ...


def check_type(type: str) -> None:
    mixtures.find(type)


def plan_types(checkpoint: Checkpoint, type: str) -> tuple[dict[str, Type], list[str]]:
    """The type of each tensor, and what is to be said about them."""
    known = types()
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    choices = mixtures.choose(shapes, type)
    misfits: dict[tuple[str, str], list[int]] = {}
    for name, choice in choices.items():
        if choice.type != choice.wanted:
            needs = "32" if choice.type == "f16" else f"{choice.wanted}'s {known[choice.wanted].block}"
            misfits.setdefault((choice.type, needs), []).append(shapes[name][-1])
    notes = [
        f"{len(widths)} matri{'ces are' if len(widths) > 1 else 'x is'} {type} instead: rows of "
        f"{', '.join(map(str, sorted(set(widths))))} are no multiple of {needs}."
        for (type, needs), widths in misfits.items()
    ]
    return {name: known[choice.type] for name, choice in choices.items()}, notes


def about_rounded(checkpoint: Checkpoint, plan: Mapping[str, Type], type: str) -> list[str]:
    """What is to be said of a model whose weights were rounded before."""
    known = types()
    before = {name: known[t.type] for name, t in checkpoint.tensors.items() if isinstance(t, Stored)}
    rounded = {name: kind for name, kind in before.items() if kind.block > 1}
    if not rounded:
        return []
    names = ", ".join(name for name, _ in Counter(kind.name for kind in rounded.values()).most_common())
    so = f"Its weights are rounded already ({names})"
    if all(plan[name] == kind for name, kind in rounded.items()):
        return [f"{so}: they are copied as they are."]
    notes = [f"{so}: costs come on top of that."]
    if sum(tensor_bytes(checkpoint, plan).values()) > sum(tensor_bytes(checkpoint, before).values()):
        notes.append(f"{type} makes the file larger than it was, and no more exact.")
    return notes


def tensor_bytes(checkpoint: Checkpoint, plan: Mapping[str, Type]) -> dict[str, int]:
    return {name: checkpoint.tensors[name].size // kind.block * kind.bytes for name, kind in plan.items()}


class DiskFull(Error):
    """There is no room for the file."""


def write(checkpoint: Checkpoint, out: str, type: str, progress: Progress | None = None, keep: bool = True) -> Report:
    """Writes the model file `out`, which appears when it is complete. keep: it is to outlive a loss of power."""
    type = mixtures.find(type)
    plan, notes = plan_types(checkpoint, type)
    notes += about_rounded(checkpoint, plan, type)
    sizes = tensor_bytes(checkpoint, plan)
    writer = gguf.GGUFWriter(None, checkpoint.architecture)
    add_keys(writer, checkpoint, type)
    for name, tensor in checkpoint.tensors.items():
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), sizes[name], gguf.GGMLQuantizationType(plan[name].id)
        )

    with complete_or_absent(out) as part, closing(writer):
        writer.write_header_to_file(Path(part))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        left, total = dict(sizes), sum(sizes.values())
        for name, rows in side_by_side(encoded, parts(checkpoint, plan)):
            left[name] -= file.write(rows.data)
            if not left[name]:
                writer.write_padding(file, sizes[name])
            if progress:
                progress(total - sum(left.values()), total)
        file.flush()
        if keep:
            os.fsync(file.fileno())
        n_bytes = file.tell()
    return Report(
        path=out,
        source=checkpoint.source,
        recognised_by=checkpoint.recognised_by,
        summary=checkpoint.summary,
        n_params=checkpoint.n_params,
        n_bytes=n_bytes,
        type=type,
        types=dict(Counter(kind.name for kind in plan.values()).most_common()),
        vocabulary=checkpoint.vocabulary.text,
        notes=notes,
        assumptions=checkpoint.assumptions,
    )


@dataclass
class Part:
    """Some rows of a tensor."""

    name: str  # of the tensor in the file that is written
    tensor: Weights
    type: str  # that they are to have
    rows: np.ndarray  # of numbers; of bytes where they have that type already
    is_encoded: bool


def parts(checkpoint: Checkpoint, plan: Mapping[str, Type]) -> Iterator[Part]:
    for name, tensor in checkpoint.tensors.items():
        type = plan[name].name
        is_encoded = isinstance(tensor, Stored) and tensor.type == type
        for rows in tensor.stored() if is_encoded else tensor.blocks():
            yield Part(name, tensor, type, rows, is_encoded)


def encoded(part: Part) -> tuple[str, np.ndarray]:
    """The tensor's name and bytes of its rows."""
    if part.is_encoded:
        check_finite(dequantize(part.rows, part.type), part.tensor)
        return part.name, part.rows
    check_numbers(part.rows, part.tensor, part.type)
    return part.name, quantize(part.rows, part.type)


T, R = TypeVar("T"), TypeVar("R")


def side_by_side(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    """The function's results in the order of its arguments, computed by threads a few ahead."""
    threads = min(cpu_count(), THREADS)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def add_keys(writer: gguf.GGUFWriter, checkpoint: Checkpoint, type: str) -> None:
    keys = {
        **checkpoint.keys,
        "pygpt.source": checkpoint.source,
        "pygpt.assumptions": checkpoint.assumptions,
        **checkpoint.vocabulary.keys,
    }
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    writer.add_file_type(mixtures.MIXTURES[type].number)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in keys.items():
        if isinstance(value, gguf.GGUFValue):  # copied from a file, with its type
            if value.value != []:  # which gguf cannot write
                writer.add_key_value(key, value.value, value.type, value.sub_type)
        else:
            add[value.__class__](key, value)  # an empty array is left out


def check_numbers(block: np.ndarray, tensor: Weights, type: str) -> None:
    limit = np.finfo(np.float32).max if type in ("f32", "bf16") else HALF_MAX
    low, high = block.min(), block.max()
    if not (-limit <= low and high <= limit):  # NaN fails too
        check_finite(block, tensor)
        raise BadFormat(
            f"{tensor.name}: holds {max(high, -low):g}, more than {type} can; convert with --type f32 or bf16"
        )


def check_finite(block: np.ndarray, tensor: Weights) -> None:
    if not np.isfinite(block).all():
        raise BadFormat(
            f"{tensor.name}: expected finite numbers, found NaN or infinity; training diverged, or the file is damaged"
        )


def check_place(out: str) -> None:
    """Can there be a file of that name?"""
    target = os.path.realpath(out)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise Error(f"{out}: there is no folder {folder}; make it first")
    if os.path.isdir(target):
        raise Error(f"{out}: is a folder; name the file in it, for example {os.path.join(out, 'model.gguf')}")
    if os.path.exists(target) and not os.path.isfile(target):
        raise Error(f"{out}: is a device; name a file")


@contextlib.contextmanager
def complete_or_absent(out: str) -> Iterator[str]:
    """A name beside `out` to write to; becomes `out` in one step when the block ends, and vanishes when it fails."""
    check_place(out)
    target = os.path.realpath(out)
    part = f"{target}.{secrets.token_hex(4)}.part"
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        os.replace(part, target)
    except Error:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{out}: the disk is full; make room, or name another folder with -o") from None
        raise Error(f"{out}: cannot be written: {error.strerror or error}; name another folder with -o") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


@contextlib.contextmanager
def closing(writer: gguf.GGUFWriter) -> Iterator[None]:
    """Closes the writer's files. After a failure they are thrown away, so what closing has to say then is not heard."""
    try:
        yield
        writer.close()
    finally:
        for file in writer.fout or []:
            with contextlib.suppress(OSError):
                file.close()
