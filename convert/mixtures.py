"""Which type each matrix of a model gets: the types and the mixtures of types that one can ask for.

A mixture spends more bits where errors cost most: on the head, and in some layers on the values of attention and on the
way out of the feed-forward part. Names and rules are llama.cpp's, so a name here means what its users know by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from pygpt._lib import BadArgument, types

ADDED = ("position_embd.weight",)  # tables whose rows are added to the sum, never multiplied: at least f16


class Place(NamedTuple):
    """Where in a model a matrix stands."""

    layer: int
    layers: int
    sharing: int  # heads that share one of keys and values


Rule = Callable[[Place], "str | None"]


def always(type: str) -> Rule:
    return lambda place: type


def first(type: str, part: int, then: str | None = None) -> Rule:
    """In the first 1 / part of the layers."""
    return lambda place: type if place.layer < place.layers // part else then


def some(type: str) -> Rule:
    """In the first and the last eighth of the layers, and between them in every third one."""

    def rule(place: Place) -> str | None:
        eighth = place.layers // 8
        middle = eighth <= place.layer < 7 * place.layers // 8
        return None if middle and (place.layer - eighth) % 3 != 2 else type

    return rule


def shared(type: str, otherwise: str | None = None) -> Rule:
    """Where 4 heads or more share them, values are few and used often."""
    return lambda place: type if place.sharing >= 4 else otherwise


@dataclass(frozen=True)
class Mixture:
    number: int  # general.file_type
    base: str
    head: str | None = "q6_k"  # the logits show every error of the head; None: as the base
    parts: Mapping[str, Rule] = field(default_factory=dict)  # blk.{i}.{part}.weight: another type, or None for the base


MIXTURES = {
    "f32": Mixture(0, "f32", None),
    "f16": Mixture(1, "f16", None),
    "bf16": Mixture(32, "bf16", None),
    "q8_0": Mixture(7, "q8_0", None),
    "q4_0": Mixture(2, "q4_0"),
    "q4_1": Mixture(3, "q4_1"),
    "q5_0": Mixture(8, "q5_0"),
    "q5_1": Mixture(9, "q5_1"),
    "q2_k": Mixture(
        10,
        "q2_k",
        parts={"attn_v": shared("q4_k", "q3_k"), "attn_output": always("q3_k"), "ffn_down": always("q3_k")},
    ),
    "q3_k_s": Mixture(11, "q3_k"),
    "q3_k_m": Mixture(
        12,
        "q3_k",
        parts={
            "attn_v": lambda place: "q5_k" if place.layer < 2 else "q4_k",
            "attn_output": always("q4_k"),
            "ffn_down": first("q5_k", 16, "q4_k"),
        },
    ),
    "q3_k_l": Mixture(
        13,
        "q3_k",
        parts={"attn_v": always("q5_k"), "attn_output": always("q5_k"), "ffn_down": always("q5_k")},
    ),
    "q4_k_s": Mixture(
        14,
        "q4_k",
        parts={"attn_v": lambda place: "q5_k" if place.layer < 4 else None, "ffn_down": first("q5_k", 8)},
    ),
    "q4_k_m": Mixture(15, "q4_k", parts={"attn_v": some("q6_k"), "ffn_down": some("q6_k")}),
    "q5_k_s": Mixture(16, "q5_k"),
    "q5_k_m": Mixture(17, "q5_k", parts={"attn_v": some("q6_k"), "ffn_down": some("q6_k")}),
    "q6_k": Mixture(18, "q6_k"),
    "iq4_nl": Mixture(25, "iq4_nl", parts={"attn_v": shared("q5_k"), "ffn_down": first("q5_k", 8)}),
    "iq4_xs": Mixture(30, "iq4_xs", parts={"attn_v": shared("q5_k"), "ffn_down": first("q5_k", 8)}),
    "mxfp4": Mixture(38, "mxfp4", "q8_0"),
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

GATE = re.compile(r"blk\.\d+\.attn_value_gate\.weight")  # a few numbers, which decide much
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
SAME = {"attn_qkv": "attn_v"}  # queries, keys and values in one matrix are treated as the values

# For rows that are no multiple of a type's 256 weights; where they are none of 32 either, f16.
NARROWER = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "iq4_xs": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}


def find(type: str) -> str:
    """The name of the mixture that `type` stands for, or an error that lists the names."""
    name = ALIASES.get(type, type)
    if name not in MIXTURES:
        raise BadArgument(f"there is no type {type!r} to convert to: choose one of {', '.join(MIXTURES)}")
    return name


class Choice(NamedTuple):
    type: str
    wanted: str  # what it stands in for because rows are too narrow; else the same


def choose(shapes: Mapping[str, tuple[int, ...]], type: str) -> dict[str, Choice]:
    """The type of each tensor of a model, given their shapes ([rows, width]) by their names in GGUF."""
    mixture = MIXTURES[find(type)]
    layers = 1 + max((int(found[1]) for name in shapes if (found := LAYER.match(name))), default=-1)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"

    def wanted(name: str) -> str:
        found = LAYER.fullmatch(name)
        if name == head and mixture.head:
            return mixture.head
        if found and (rule := mixture.parts.get(SAME.get(found[2], found[2]))):
            return rule(Place(int(found[1]), layers, heads_sharing(shapes, found[1]))) or mixture.base
        return mixture.base

    choices = {name: fit(name, shape, wanted(name)) for name, shape in shapes.items()}
    if head in choices and choices[head].type == "q8_0":
        choices[head] = Choice("q8_0", "q8_0")  # instead of q6_k: even better, so nothing that is to be reported
    return choices


def fit(name: str, shape: tuple[int, ...], wanted: str) -> Choice:
    """A type that can hold rows of that width."""
    if len(shape) == 1 or GATE.fullmatch(name):
        return Choice("f32", "f32")  # norms, biases, gates: nothing to win
    if name in ADDED and wanted != "f32":
        return Choice("f16", "f16")
    known = types()
    type = wanted
    while shape[-1] % known[type].block:
        type = NARROWER.get(type, "f16")
    return Choice(type, wanted)


def n_bytes(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    kind = types()[type]
    return prod(shape) // kind.block * kind.bytes


def heads_sharing(shapes: Mapping[str, tuple[int, ...]], layer: str) -> int:
    queries, keys = (shapes.get(f"blk.{layer}.attn_{part}.weight", (1,))[0] for part in "qk")
    return queries // keys if keys else 1
