"""What a conversion did, as a few lines for a person and as fields for a program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]  # bytes written, bytes in all


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

    def __str__(self) -> str:
        types = ", ".join(f"{n} {name}" for name, n in self.types.items())
        lines = [
            f"{self.source} (by {self.recognised_by}): {self.summary}",
            f"vocabulary: {self.vocabulary}",
            *(f"assumed: {line}" for line in self.assumptions),
            *self.notes,
            f"{self.path}: {human(self.n_params).rstrip()} parameters in {human(self.n_bytes)}B, tensors: {types}",
        ]
        return "\n".join(lines)


def human(n: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} "


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
