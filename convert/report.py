"""What a conversion did, as a few lines for a person and as fields for a program."""

from __future__ import annotations

from dataclasses import dataclass, field


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
