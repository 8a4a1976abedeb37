"""What every checkpoint source produces, and the words that several of them need. It knows no file format."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pygpt._lib import BadArgument, BadFormat

from .pickled_module import module_tensors, unwrapped
from .unpickle import Stub, shown

BLOCK = 1 << 20  # weights at a time
PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")  # of torch.compile, DDP and FSDP


class Weights(Protocol):
    """Numbers that are read when they are wanted."""

    name: str  # in the checkpoint, for sentences

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    def check(self) -> None: ...
    def blocks(self) -> Iterator[np.ndarray]: ...


@dataclass
class Zeros:
    """A bias that the checkpoint does not have and the format wants."""

    shape: tuple[int, ...]
    name: str = "zeros"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def check(self) -> None:
        pass

    def blocks(self) -> Iterator[np.ndarray]:
        yield np.zeros((1, self.size), np.float32)


@dataclass
class Values:
    """Numbers that the checkpoint does not have as such: they follow from its settings."""

    array: np.ndarray
    name: str = "values"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def size(self) -> int:
        return self.array.size

    def check(self) -> None:
        pass

    def blocks(self) -> Iterator[np.ndarray]:
        yield self.array.astype(np.float32).reshape(-1, self.shape[-1])


@dataclass
class Rows:
    """Some rows of a matrix: one of several that were stored as one, or all without padding."""

    whole: Any  # a Weights that also has rows(start, count), as Tensor
    begin: int
    end: int

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.end - self.begin, *self.whole.shape[1:])

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def check(self) -> None:
        self.whole.check()

    def blocks(self) -> Iterator[np.ndarray]:
        width = self.size // (self.end - self.begin)
        step = max(1, BLOCK // width)
        for begin in range(self.begin, self.end, step):
            block = self.whole.rows(begin, min(step, self.end - begin))
            yield block if len(self.shape) > 1 else block.reshape(1, -1)


@dataclass
class Stacked:
    """Matrices of one width, one below the other: heads that were stored apart."""

    parts: list[Any]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def check(self) -> None:
        for part in self.parts:
            part.check()

    def blocks(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield from part.blocks()


@dataclass
class Vocabulary:
    """The tokenizer as it is written: GGUF keys with their values, and a line about it for the report."""

    keys: dict[str, Any]
    text: str
    assumptions: list[str] = field(default_factory=list)
    sample: str | None = None  # a file with text that the model was trained on, if one was found
    files: list[str] = field(default_factory=list)  # that it was read from


@dataclass(frozen=True)
class Answer:
    """One way in which a model may compute: its name, as the option takes it, and the GGUF keys that say so."""

    name: str
    keys: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)  # option: its value, where there are several


@dataclass
class Question:
    """What a checkpoint does not say and changes the result. The answers are tried on text; the first one stands where
    that decides nothing."""

    topic: str  # "the attention scale"
    option: str  # that decides it: "--attention-scale"
    answers: list[Answer]  # the likeliest first
    why: str  # the first one is: "as in the lecture's code since 2023-01-27"
    has_default: bool = True  # False: where text decides nothing, the option must

    def option_between(self, answers: list[Answer]) -> str:
        """The option that tells most of these answers apart."""
        options = answers[0].options
        return max(options, key=lambda name: len({answer.options[name] for answer in answers}), default=self.option)


@dataclass
class Checkpoint:
    source: str  # "nanoGPT"
    recognised_by: str  # what in the file says so
    architecture: str  # GGUF's general.architecture
    keys: dict[str, Any]  # GGUF keys of the hyperparameters; int is u32, float is f32
    tensors: dict[str, Weights]  # by their GGUF names, in the order of the file
    vocabulary: Vocabulary
    summary: str  # "4 layers, 4 heads, 128 wide, context 64"
    questions: list[Question] = field(default_factory=list)  # their keys are not in `keys`
    assumptions: list[str] = field(default_factory=list)  # what the file does not say and changes the result
    files: list[str] = field(default_factory=list)  # that it was read from, beside the one that was named
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its model, by its own names, where it has such
    output: str | None = None  # where it is written by default; None: beside the file, with its name

    @property
    def n_params(self) -> int:
        return sum(t.size for t in self.tensors.values() if not isinstance(t, (Zeros, Values)))


@dataclass
class Options:
    """What the user said beside the file's name. None: nothing."""

    meta: str | None = None  # a meta.pkl
    text: str | None = None  # the training text: a character vocabulary follows from it, and candidates are tried on it
    tokenizer: str | None = None  # "bytes", "gpt2", or a tokenizer's file
    n_head: int | None = None
    gelu: str | None = None  # "erf" or "tanh"
    attention_scale: str | None = None  # "head", "width" or a number
    softcap: float | None = None
    rope_base: float | None = None
    qk_scale: float | None = None

    def refuse(self, source: str, *known: str) -> None:
        """Refuses every option but these: it would change nothing, and whoever gave it thinks that it does."""
        for name, value in vars(self).items():
            if value is not None and name not in known:
                raise BadArgument(f"{flag(name)} is not for {source}: its files say it, or have no such; leave it out")

    def constant(self, name: str) -> float | None:
        """The number that softcap, rope_base or qk_scale is to be."""
        value, least = getattr(self, name), 1 if name == "rope_base" else 0
        if value is None:
            return None
        if type(value) not in (int, float) or not max(least, 1e-30) < value < 1e30:
            raise BadArgument(f"{flag(name)} must be a number above {least}, and {value!r} is not")
        return float(value)


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


@dataclass
class Input:
    """A checkpoint on disk as `SOURCES` look at it. What is opened stays open until the conversion is done."""

    path: str
    stack: ExitStack

    @functools.cached_property
    def value(self) -> object:
        """The object that torch.save was given; None in files that it did not write."""
        from .torch_file import TorchFile, is_torch_file

        return self.stack.enter_context(TorchFile(self.path)).value if is_torch_file(self.path) else None

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """The state_dict in it, without wrappers and prefixes; empty if there is none."""
        return state_dict(self.value)


def state_dict(value: object) -> dict[str, Any]:
    from .torch_file import Tensor

    for candidate in unwrapped(value):
        if type(candidate) is Stub:
            candidate = dict(module_tensors(candidate))
        if type(candidate) is dict:
            found = {strip_prefixes(k): v for k, v in candidate.items() if type(k) is str and type(v) is Tensor}
            if any("." in k for k in found):  # a tensor beside the weights, such as best_val_loss, has none
                for name, tensor in found.items():
                    tensor.name = name
                return found
    return {}


def strip_prefixes(name: str) -> str:
    at = 0
    while prefix := next((p for p in PREFIXES if name.startswith(p, at)), ""):
        at += len(prefix)
    return name[at:]


def whole_number(values: Mapping[Any, object], key: str, low: int, high: int, where: str) -> int:
    value = values.get(key)
    if type(value) is not int or not low <= value <= high:
        found = shown(value) if key in values else "nothing"
        raise BadFormat(f"{where}: expected {key} to be a whole number from {low} to {high}, found {found}")
    return value


def find_above(path: str, relative: str) -> str | None:
    """The nearest such file, looked for in the folder of `path`, the one above it, and so on to the root."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isfile(found := os.path.join(folder, relative)):
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above
    return found
