"""Writes a model file again in another type: the tensors of a GGUF file, given to the converter's writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike, fspath
from typing import Any

import numpy as np

from pygpt._lib import File, TensorInfo, Unsupported, dequantize, types

from .checkpoint import Checkpoint, Vocabulary
from .report import Report
from .writer import write

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
    """A tensor of a model file, as the writer wants it."""

    def __init__(self, file: File, info: TensorInfo) -> None:
        self._file, self._info = file, info
        self.name, self.shape = info.name, info.shape or (1,)

    @property
    def size(self) -> int:
        n = 1
        for width in self.shape:
            n *= width
        return n

    def check(self) -> None:
        if self._info.type not in types():
            raise Unsupported(f"{self.name}: weights of type {self._info.type} cannot be read")

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [rows, width], some rows at a time."""
        rows = self._file.data(self.name).reshape(self.size // self.shape[-1], -1)
        step = max(1, BLOCK // self.shape[-1])
        for i in range(0, len(rows), step):
            yield dequantize(rows[i : i + step], self._info.type)


def requantize(
    source: str | PathLike[str],
    output: str | PathLike[str],
    type: str,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Writes the model file `source` as `output`, with weights of `type`; output appears when it is complete.

    Quantizing what is quantized already adds the errors of both. Raises pygpt.Error for what cannot be read or written.
    """
    with File(source) as file:
        architecture = file.keys.get("general.architecture")
        if not isinstance(architecture, str) or not file.tensors:
            raise Unsupported(f"{fspath(source)}: holds no model, so there is nothing to quantize")
        tensors = {name: FileWeights(file, info) for name, info in file.tensors.items()}
        for tensor in tensors.values():
            tensor.check()
        checkpoint = Checkpoint(
            source=str(file.keys.get("pygpt.source", "GGUF")),
            recognised_by="its header",
            architecture=architecture,
            keys={name: _plain(name, file.keys[name]) for name in file.keys if name not in WRITTEN_ANEW},
            tensors=tensors,
            vocabulary=Vocabulary({}, "as it was"),
            summary=f"{architecture}, {len(tensors)} tensors",
            assumptions=[str(line) for line in file.keys.get("pygpt.assumptions", [])],
        )
        return write(checkpoint, fspath(output), type, progress)


def _plain(name: str, value: Any) -> Any:
    if value.__class__ is int and not 0 <= value < 2**32:
        raise Unsupported(f"the key {name} is {value}, which is not copied: only 0 to 2^32 - 1 are")
    return value
