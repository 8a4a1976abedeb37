"""GGUF as a source: a model file written again in another type, its keys as they are.

Weights that are of the wanted type already are copied: quantizing them again would change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from os import PathLike, fspath

import gguf
import numpy as np

from pygpt._lib import File, Keys, TensorInfo, Unsupported, dequantize, types

from .checkpoint import Checkpoint, Input, Options, Vocabulary, whole_number
from .report import Progress, Report, progress_shown
from .writer import write

NAME = "GGUF"
BLOCK = 1 << 20  # weights at a time
WRITTEN_ANEW = (  # keys that the writer adds itself
    "general.architecture",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "pygpt.source",
    "pygpt.assumptions",
)


class FileWeights:
    """A tensor of a model file, as the writer wants it: a `Stored`."""

    def __init__(self, file: File, info: TensorInfo) -> None:
        self._file = file
        self.name, self.type, self.shape = info.name, info.type, info.shape or (1,)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def check(self) -> None:
        if self.type not in types():
            raise Unsupported(f"{self.name}: weights of type {self.type} cannot be read")

    def stored(self) -> Iterator[np.ndarray]:
        """uint8 [rows, bytes of a row], some rows at a time."""
        rows = self._file.data(self.name).reshape(self.size // self.shape[-1], -1)
        step = max(1, BLOCK // self.shape[-1])
        for i in range(0, len(rows), step):
            yield rows[i : i + step]

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [rows, width], some rows at a time."""
        return (dequantize(rows, self.type) for rows in self.stored())


def recognise(source: Input) -> str | None:
    with open(source.path, "rb") as file:
        return "its first bytes" if file.read(4) == b"GGUF" else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "text")
    file = source.stack.enter_context(File(source.path))
    refuse_part(source.path, file.keys)
    architecture = file.keys.get("general.architecture")
    if not isinstance(architecture, str) or not file.tensors:
        raise Unsupported(f"{source.path}: holds no model, so there is nothing to convert")
    assumptions = file.keys.get("pygpt.assumptions")
    tensors = {name: FileWeights(file, info) for name, info in file.tensors.items()}
    for tensor in tensors.values():
        tensor.check()
    return Checkpoint(
        source=str(file.keys.get("pygpt.source", NAME)),
        recognised_by="its header",
        architecture=architecture,
        keys={name: _typed(file.keys, name) for name in file.keys if name not in WRITTEN_ANEW},
        tensors=tensors,
        vocabulary=Vocabulary({}, "as it was"),
        summary=f"{architecture}, {len(tensors)} tensors",
        assumptions=[str(line) for line in assumptions] if isinstance(assumptions, list) else [],
    )


def refuse_part(path: str, keys: Keys) -> None:
    """llama.cpp splits large models into files, of which each has some of the tensors."""
    n_files = whole_number(keys, "split.count", 0, 65535, path) if "split.count" in keys else 1
    if n_files > 1:
        raise Unsupported(
            f"{path}: expected a whole model, found one of {n_files} files that it was split into; merge them first, "
            "for example with llama.cpp's llama-gguf-split --merge"
        )


def requantize(
    source: str | PathLike[str],
    output: str | PathLike[str],
    type: str,
    progress: bool | Progress = False,
) -> Report:
    """Writes the model file `source` as `output`, with weights of `type`; output appears when it is complete.

    Quantizing what is quantized already adds the errors of both; what is of its type already is copied. Raises
    pygpt.Error for what cannot be read or written.
    """
    with ExitStack() as stack:
        checkpoint = load(Input(fspath(source), stack), Options())
        return write(checkpoint, fspath(output), type, progress_shown(progress, stack))


def _typed(keys: Keys, name: str) -> gguf.GGUFValue:
    """A key's value with the type that it has in the file."""
    number, is_array = keys.type(name)
    kind = gguf.GGUFValueType(number)
    if is_array:
        return gguf.GGUFValue(keys[name], gguf.GGUFValueType.ARRAY, kind)
    return gguf.GGUFValue(keys[name], kind)
