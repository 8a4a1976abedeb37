"""What a model's file holds, for explaining it: its tensors, each with the part of the model that it belongs to.

Owns names and sizes, and how a file's own words are shown. Knows no architecture: what keys and tensors mean is said in
formulas.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import NamedTuple

from pygpt import _lib
from pygpt.model import IdModel

FLOATS = ("f32", "f16", "bf16")
COMPUTED = ("rope_freqs",)  # tensors that follow from a checkpoint's settings: nobody trained them
PARTS = ("embeddings", "attention", "feed-forward", "head", "norms and biases", "other")


class Piece(NamedTuple):
    """A tensor. stem: its name without "blk.<layer>." and ".weight"; is_zeros: a bias that the model does not have."""

    stem: str
    layer: int | None
    shape: tuple[int, ...]
    type: str
    bytes: int
    is_zeros: bool

    @property
    def size(self) -> int:
        """Its parameters."""
        return 0 if self.is_zeros or self.stem in COMPUTED else prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    @property
    def is_quantized(self) -> bool:
        """A matrix that is multiplied in int8."""
        return self.is_matrix and self.type not in FLOATS

    @property
    def part(self) -> str:
        if self.stem.endswith("_embd"):
            return "embeddings"
        if self.stem.endswith((".bias", "_norm")):
            return "norms and biases"
        prefixes = {"attn_": "attention", "ffn_": "feed-forward", "output": "head"}
        return next((part for prefix, part in prefixes.items() if self.stem.startswith(prefix)), "other")


def piece(file: _lib.File, tensor: _lib.TensorInfo) -> Piece:
    layer, stem = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)", tensor.name, re.DOTALL).groups()  # type: ignore[union-attr]
    is_zeros = stem.endswith(".bias") and not file.data(tensor.name).any()
    stem = clean(stem.removesuffix(".weight"), 40)
    return Piece(stem, None if layer is None else int(layer), tensor.shape, tensor.type, tensor.bytes, is_zeros)


class Anatomy:
    """A model's tensors and keys. is_tied: its head is the token embedding again; source: what it was made from."""

    def __init__(self, model: IdModel) -> None:
        self.info, file = model.info, model.file()
        self.arch, self.keys, self.file_bytes = self.info.architecture, file.keys, file.bytes
        self.pieces = [piece(file, tensor) for tensor in file.tensors.values()]
        self.stems = {p.stem for p in self.pieces}
        self.is_tied = self.arch != "bigram" and "output" not in self.stems
        self.has_attention = any(p.part == "attention" for p in self.pieces)
        self.n_layer = len({p.layer for p in self.pieces} - {None})
        source = self.keys.get("pygpt.source")
        self.source = source if isinstance(source, str) else ""

    def count(self, amount: Callable[[Piece], int], part: str) -> int:
        return sum(amount(p) for p in self.pieces if p.part == part)

    def width(self, stem: str) -> str:
        """The values in a row of a tensor, as a word of a formula."""
        return next((str(p.shape[-1]) for p in self.pieces if p.stem == stem), "")


# ---- what a file says, as a terminal may see it ----------------------------------------------------------------------


def clean(value: object, limit: int) -> str:
    """A text from a file as a terminal may see it: neither what it would obey, nor more than a line."""
    text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def number(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else clean(value, 30)
