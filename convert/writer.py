"""Writes a Checkpoint as GGUF, tensor by tensor: a few megabytes of memory, a file that is either complete or absent.

Chooses the type of each tensor. The bytes of a type are the C core's business, the layout of the file gguf's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from pygpt._lib import BadArgument, BadFormat, Error, Type, quantize, types

from .checkpoint import Checkpoint, Weights
from .report import Progress, Report

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}  # type of most tensors: general.file_type
ADDED = ("position_embd.weight",)  # tables whose rows are added to the sum, never multiplied: at least f16
HALF_MAX = 65504.0  # the largest float16, which is also what the blocks' scales are stored in


def choose_type(name: str, shape: tuple[int, ...], type: str, known: dict[str, Type], head: str) -> str:
    """The type for a tensor when the user wants `type`."""
    if len(shape) == 1:
        return "f32"  # norms and biases: nothing to win
    if name in ADDED:
        return "f32" if type == "f32" else "f16"
    if type == "q4_0" and name == head:
        type = "q8_0"  # the logits show every error of the head
    return type if shape[-1] % known[type].block == 0 else "f16"


def check_type(type: str) -> None:
    choices = [name for name in types() if name in FILE_TYPES]
    if type not in choices:
        raise BadArgument(f"there is no type {type!r} to convert to: choose one of {', '.join(choices)}")


def plan_types(checkpoint: Checkpoint, type: str) -> tuple[dict[str, Type], list[str]]:
    """The type of each tensor, and what is to be said about them."""
    check_type(type)
    known = types()
    head = "output.weight" if "output.weight" in checkpoint.tensors else "token_embd.weight"
    plan = {
        name: known[choose_type(name, tensor.shape, type, known, head)] for name, tensor in checkpoint.tensors.items()
    }
    misfits = [
        tensor.shape[-1]
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) > 1 and name not in ADDED and tensor.shape[-1] % known[type].block
    ]
    if not misfits:
        return plan, []
    widths = ", ".join(str(width) for width in sorted(set(misfits)))
    return plan, [
        f"{len(misfits)} matrices are f16 instead: rows of {widths} are no multiple of {type}'s {known[type].block}."
    ]


def write(checkpoint: Checkpoint, out: str, type: str, progress: Progress | None = None) -> Report:
    plan, notes = plan_types(checkpoint, type)
    sizes = {name: tensor.size // plan[name].block * plan[name].bytes for name, tensor in checkpoint.tensors.items()}
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
        done = 0
        for name, tensor in checkpoint.tensors.items():
            for block in tensor.blocks():
                check_numbers(block, tensor, plan[name].name)
                done += file.write(quantize(block, plan[name].name).data)
                if progress:
                    progress(done, sum(sizes.values()))
            writer.write_padding(file, sizes[name])
        file.flush()
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
    writer.add_file_type(FILE_TYPES[type])
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
        if np.isfinite(block).all():
            raise BadFormat(
                f"{tensor.name}: holds {max(high, -low):g}, more than {type} can; convert with --type f32 or bf16"
            )
        raise BadFormat(
            f"{tensor.name}: expected finite numbers, found NaN or infinity; training diverged, or the file is damaged"
        )


@contextlib.contextmanager
def complete_or_absent(out: str) -> Iterator[str]:
    """A name beside `out` to write to; becomes `out` in one step when the block ends, and vanishes when it fails."""
    target = os.path.realpath(out)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise Error(f"{out}: there is no folder {folder}; make it first")
    if os.path.isdir(target):
        raise Error(f"{out}: is a folder; name the file in it, for example {os.path.join(out, 'model.gguf')}")
    if os.path.exists(target) and not os.path.isfile(target):
        raise Error(f"{out}: is a device; name a file")
    part = f"{target}.{secrets.token_hex(4)}.part"
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        os.replace(part, target)
    except Error:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Error(f"{out}: the disk is full; make room, or name another folder with -o") from None
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
