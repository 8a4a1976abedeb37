"""What a conversion did, as a few lines for a person and as fields for a program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

Progress = Callable[[int, int], None]  # bytes written, bytes in all


LONG_NAMES = {"f32": "float32", "f16": "float16"}


@dataclass
class Trial:
    """One answer to a question, tried."""

    topic: str
    name: str
    nats: float  # per token, at the temperature that suits it
    behind: float = 0.0  # nats per token that the best answer is better by
    error: float = 0.0  # standard error of that
    is_taken: bool = False


@dataclass
class Cost:
    """What a type costs: its loss beside that of float32."""

    type: str
    nats: float  # more per token
    error: float  # standard error of that
    bits: float  # more per byte
    n_bytes: int  # of the model file
    is_written: bool = False


@dataclass
class Proof:
    text: str = ""  # the text's name; empty: nothing was tried
    n_tokens: int = 0
    nats: float | None = None  # per token, in the type below; None: not measured
    bits: float = 0.0  # per byte
    nats_of_frequencies: float = np.inf  # per token, of a model that knows only how often each one comes
    type: str = "f32"
    tried_in: str = ""  # the type that trials were made in
    n_tried: int = 0  # tokens that they were made on
    trials: list[Trial] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    line: str = ""
    predictions: list[tuple[str, float]] = field(default_factory=list)  # what follows the line: text, probability
    left_out: list[str] = field(default_factory=list)  # what was not measured, and why


@dataclass
class Report:
    path: str  # of the file that was written
    source: str  # "nanoGPT"
    recognised_by: str
    summary: str  # the model in a line
    n_params: int
    n_bytes: int
    type: str  # as asked for
    types: dict[str, int]  # type: number of tensors
    vocabulary: str
    notes: list[str] = field(default_factory=list)  # what was done differently than asked
    assumptions: list[str] = field(default_factory=list)  # what the checkpoint does not say
    proof: Proof | None = None  # what was tried and measured
    check: str = ""  # how its logits compare with those of the user's own module

    def __str__(self) -> str:
        types = ", ".join(f"{n} {name}" for name, n in self.types.items())
        lines = [
            f"{self.source} (by {self.recognised_by}): {self.summary}",
            f"vocabulary: {self.vocabulary}",
            *(f"assumed: {line}" for line in self.assumptions),
            *self.notes,
            *(proof_lines(self.proof) if self.proof else ()),
            *([self.check] if self.check else ()),
            f"{self.path}: {human(self.n_params).rstrip()} parameters in {human(self.n_bytes)}B, tensors: {types}",
        ]
        return "\n".join(lines)


def proof_lines(proof: Proof) -> list[str]:
    """What was tried and measured, as a person reads it."""
    lines = [f"not measured: {why}" for why in proof.left_out]
    if not proof.text:
        return lines
    if proof.trials:
        lines.append(
            f"tried on {proof.n_tried:,} tokens of {proof.text}, nats per token in {proof.tried_in}, each at its best "
            "temperature:"
        )
        width = max(len(trial.name) for trial in proof.trials)
        for trial in proof.trials:
            behind = f"  +{trial.behind:.2g} ± {trial.error:.1g}" if trial.behind else ""
            taken = "  taken" if trial.is_taken else ""
            lines.append(f"  {trial.topic}: {trial.name:<{width}}  {trial.nats:.4f}{behind}{taken}")
    if proof.nats is not None:
        lines.append(
            f"loss on {proof.n_tokens:,} tokens of {proof.text}: {proof.nats:.4f} nats per token, "
            f"{proof.bits:.4f} bits per byte in {proof.type}"
        )
        if proof.nats > proof.nats_of_frequencies:
            lines.append(
                f"NOT PROVED: the frequencies of its tokens predict it better ({proof.nats_of_frequencies:.4f}): the "
                "text is foreign to it, or the vocabulary or a setting is wrong; name its training text with --text"
            )
    if proof.costs:
        lines.append(f"rounding costs, beside {LONG_NAMES.get(proof.type, proof.type)}:")
    for cost in proof.costs:
        written = "  written" if cost.is_written else ""
        lines.append(
            f"  {cost.type:<7} {cost.nats:+.4f} ± {cost.error:.4f} nats per token  {cost.bits:+.4f} bits per byte  "
            f"{human(cost.n_bytes)}B{written}"
        )
    if proof.predictions:
        likeliest = ", ".join(f"{text} {p:.0%}" for text, p in proof.predictions)
        lines.append(f"after {proof.line!r}: {likeliest}")
    return lines


def human(n: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} "


def steps_shown(progress: bool | Progress, stack: ExitStack) -> Callable[[str], None]:
    """A function that shows on a terminal what is going on, and since when."""
    if progress is not True or sys.stderr is None or not sys.stderr.isatty():
        return lambda step: None
    from tqdm import tqdm

    bar = stack.enter_context(tqdm(bar_format="{desc} ({elapsed})", leave=False))

    def tell(step: str) -> None:
        bar.reset()
        bar.set_description_str(step)

    return tell


def progress_shown(progress: bool | Progress, stack: ExitStack) -> Progress | None:
    """A function to report progress to, if anybody looks."""
    if callable(progress):
        return progress
    if not progress or sys.stderr is None or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = stack.enter_context(tqdm(unit="B", unit_scale=True, desc="converting", leave=False))

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update
