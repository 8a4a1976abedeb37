"""What the weights of a GPT do not say and changes the result: the number of heads, and which GELU.

Owns where the answer is looked for: the modules and settings in the file, the option, a file beside it, sizes that are
known. Where none of them says it, it becomes a `Question`. What speaks for an answer, each source knows itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pygpt._lib import BadArgument, BadFormat, Unsupported

from .checkpoint import Answer, Input, Options, Question, whole_number
from .pickled_module import activation, attributes, config_of, modules

ACTIVATION = "pygpt.activation"  # the key of GGUF's gpt2; its values are "gelu_" and the option's
HEAD_COUNT = "gpt2.attention.head_count"
LIKELY_SIZES = (64, 32, 48)  # of heads
LEAST_SIZE = 8  # of heads, but in models narrower than this:
NARROW = 256
MOST_TRIED = 16  # numbers of heads: each trial takes about a second
CERTAIN = 768  # width from which on a known size is one of OpenAI's, which nobody trains with other heads


@dataclass
class Found:
    """What is known about something that the weights do not say: GGUF keys, or the question that decides them."""

    keys: dict[str, Any] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # that say so


# ---- GELU


def find_gelu(
    source: Input, options: Options, key: str = ACTIVATION, known: tuple[str, ...] = ("gelu_erf", "gelu_tanh")
) -> Found | None:
    """By the file or the option; None where neither says it. known: what the architecture computes."""
    said, option = activation(source.path, source.value, known), options.gelu
    if option not in (None, "erf", "tanh"):
        raise BadArgument(f"there is no GELU {option!r}: choose erf or tanh")
    if said and option and said != "gelu_" + option:
        raise BadArgument(f"--gelu {option} contradicts {source.path}, whose modules compute {said}; leave it out")
    if said:
        return Found({key: said})
    return assume_gelu(option, "as the option says", key) if option else None


def assume_gelu(name: str, why: str, key: str = ACTIVATION) -> Found:
    return Found({key: "gelu_" + name}, [f"The GELU is {name}, {why}."])


def ask_gelu(names: tuple[str, str], why: str) -> Found:
    """names: the likelier one first, for which `why` speaks."""
    answers = [Answer(name, {ACTIVATION: "gelu_" + name}) for name in names]
    return Found(questions=[Question("the GELU", "--gelu", answers, why)])


# ---- heads

Size = tuple[int, int]  # layers, width
Sizes = Mapping[Size, tuple[str, int]]  # what has this size, and its heads
Heads = tuple[int, str, Found]  # how many, what says so
Beside = Callable[[str, Size], "Heads | None"]  # of the checkpoint's path


def find_heads(
    source: Input,
    options: Options,
    size: Size,
    known: Sizes,
    beside: Beside | None = None,
) -> Found:
    """The number of heads: by the file, the option, `beside` or a known size, whichever says it first; else a question.

    known: sizes of well-known models. Those of OpenAI's leave no doubt; of others, the heads are the question's first
    answer. beside: what a file beside the checkpoint says.
    """
    n_embd = size[1]
    found = (
        heads_in_file(source, options)
        or heads_by_option(options)
        or (beside and beside(source.path, size))
        or heads_of_openais(known, size)
    )
    if not found:
        return ask_heads(n_embd, known.get(size))
    n_head, said_by, result = found
    if n_embd % n_head:
        error = BadArgument if said_by == "--n-head" else BadFormat
        raise error(
            f"{source.path}: {n_head} heads by {said_by} do not divide the width of {n_embd}; expected the number that "
            "the model was trained with, such as --n-head names"
        )
    result.keys[HEAD_COUNT] = n_head
    return result


def heads_in_file(source: Input, options: Options) -> Heads | None:
    """By settings beside the weights, or by the modules of a model that was pickled whole."""
    found = [attributes(module).get("n_head") for module in modules(source.value)]
    numbers = {n for n in found if type(n) is int and n > 0}
    if config := config_of(source.value):
        numbers.add(whole_number(config, "n_head", 1, 10_000, f"{source.path}: config"))
    if not numbers:
        return None
    if len(numbers) > 1:
        raise Unsupported(
            f"{source.path}: expected as many heads in each layer, found {min(numbers)} and {max(numbers)}; "
            "a changed model would come out wrong"
        )
    n_head = numbers.pop()
    if options.n_head not in (None, n_head):
        raise BadArgument(
            f"--n-head {options.n_head} contradicts {source.path}, which has n_head {n_head}; leave it out"
        )
    return n_head, "its n_head", Found()


def heads_by_option(options: Options) -> Heads | None:
    n_head = options.n_head
    if n_head is None:
        return None
    if type(n_head) is not int or n_head < 1:
        raise BadArgument(f"expected --n-head to be a whole number from 1 on, found {n_head!r}")
    return n_head, "--n-head", Found(assumptions=[f"There are {n_head} heads, as the option says."])


def heads_of_openais(known: Sizes, size: Size) -> Heads | None:
    if size not in known or size[1] < CERTAIN:
        return None
    name, n_head = known[size]
    why = f"There are {n_head} heads, as in {name} of {size[0]} layers and a width of {size[1]} (--n-head if not)."
    return n_head, f"the size of {name}", Found(assumptions=[why])


def ask_heads(n_embd: int, likely: tuple[str, int] | None) -> Found:
    numbers = possible_heads(n_embd)
    if len(numbers) == 1:
        least = least_size(n_embd)
        why = f"There is one head: a width of {n_embd} has no other heads of {least} or more (--n-head if not)."
        return Found({HEAD_COUNT: 1}, [why])
    why = f"with heads of {n_embd // numbers[0]}"
    if likely:
        name, n_head = likely
        numbers, why = [n_head, *(n for n in numbers if n != n_head)], f"as in {name}"
    answers = [Answer(str(n), {HEAD_COUNT: n}) for n in numbers]
    question = Question("the number of heads", "--n-head", answers, why, has_default=likely is not None)
    return Found(questions=[question])


def possible_heads(n_embd: int) -> list[int]:
    """Those that divide the width into heads that are not too small, the likeliest first; no more than `MOST_TRIED`.

    Few widths have more. Left out are small heads first: those of 4 and less of 240, of 20 and less of 720.
    """

    def unlikelihood(n_head: int) -> tuple[int, float]:
        size = n_embd // n_head
        rank = LIKELY_SIZES.index(size) if size in LIKELY_SIZES else len(LIKELY_SIZES)
        octaves = math.log2(size / LIKELY_SIZES[0])
        return rank, max(-octaves, octaves / 3)  # few heads are made more often than many

    most = n_embd // least_size(n_embd)
    return sorted((n for n in range(1, most + 1) if n_embd % n == 0), key=unlikelihood)[:MOST_TRIED]


def least_size(n_embd: int) -> int:
    return LEAST_SIZE if n_embd >= NARROW else 1
