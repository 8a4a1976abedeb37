"""What names and shapes of tensors tell where no settings lie beside them: sizes, and which tensors were learned."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from pygpt._lib import BadFormat, Unsupported

from .checkpoint import Input
from .torch_file import Tensor


def dims(source: Input, name: str, n: int, model: str) -> tuple[int, ...]:
    """The shape of a tensor that other shapes follow from. model: what has such a tensor, for sentences."""
    tensor = source.weights.get(name)
    if tensor is None:
        raise BadFormat(
            f"{source.path}: expected a tensor {name}, as {model} has it, found none; was the file saved whole?"
        )
    if len(tensor.shape) != n or 0 in tensor.shape:
        raise BadFormat(
            f"{source.path}: expected {name} to have {n} dimensions and none of them empty, "
            f"found shape {list(tensor.shape)}"
        )
    return tensor.shape


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that follows the pattern in the names."""
    numbered = re.compile(pattern + r"([0-9]{1,4})\.")
    return 1 + max((int(match[1]) for name in names if (match := numbered.match(name))), default=-1)


def without_masks(source: Input, endings: tuple[str, ...], n_ctx: int) -> dict[str, Tensor]:
    """The tensors that were learned. The others must be causal masks: by another one a changed model is known."""
    learned = {}
    for name, tensor in source.weights.items():
        if not name.endswith(endings) or len(tensor.shape) < 2:
            learned[name] = tensor
        elif not is_causal(tensor, n_ctx):
            raise Unsupported(
                f"{source.path}: expected {name} to let each of {n_ctx} positions see itself and those before it, "
                "found another mask; a changed model would come out wrong"
            )
    return learned


def is_causal(mask: Tensor, n_ctx: int) -> bool:
    if mask.shape not in ((n_ctx, n_ctx), (1, 1, n_ctx, n_ctx)):
        return False
    row = 0
    for block in mask.blocks():
        if not np.array_equal(block != 0, np.tri(len(block), n_ctx, row, dtype=bool)):
            return False
        row += len(block)
    return True
