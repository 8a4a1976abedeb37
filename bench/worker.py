"""A process that computes when it is told to: one request and one answer per line of JSON. Both ends of the pipe.

The far end runs in the peer's environment too, so this file imports nothing but Python's own library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class WorkerError(Exception):
    """What a worker could not do, in its own words."""


class Worker:
    """The near end. worker("pp", n=512) calls the method pp of the far end's engine. A context manager."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self._log = name, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.pid = self._process.pid

    def __call__(self, do: str, **arguments: Any) -> Any:
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            code = self._process.wait()
            raise WorkerError(f"{self.name} ended with {code} when told to {do}; its last words: {self._log}") from None
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer["value"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=10)  # closes the pipe, which is the sign to end
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(engine: Any) -> None:
    """The far end: answers until the pipe is closed. What the engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": getattr(engine, request.pop("do"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def memory() -> dict[str, int]:
    """Resident bytes of this process: its own, and mapped from files."""
    with open("/proc/self/smaps_rollup") as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    return {"own": kilobytes["Anonymous"] * 1024, "mapped": (kilobytes["Rss"] - kilobytes["Anonymous"]) * 1024}
