"""The machine that the bench runs on: where files lie, what it is, what it could do at most, who else uses it now."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from pygpt import _lib

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
THREADS = 2
LIMITS = {"read": (1e9, "GB/s read from memory"), "mac": (1e9, "GMAC/s of 8-bit integers in registers")}


def limits(seconds: float = 0.2) -> dict[str, float]:
    """Bytes per second that all threads read from memory, and multiply-adds of 8-bit integers per second."""
    return {"read": _lib.measure_read(THREADS, seconds), "mac": _lib.measure_mac(THREADS, seconds)}


def limits_text(found: dict[str, float]) -> str:
    return ", ".join(f"{found[name] / unit:.1f} {words}" for name, (unit, words) in LIMITS.items())


def describe() -> dict[str, str]:
    return {
        "processor": processor(),
        "system": f"{os.cpu_count()} processors, {memory_gb():.0f} GB of memory, {platform.system()} "
        f"{platform.release()}",
        "pygpt": f"{commit()}, kernels {_lib.isa_current()}, {THREADS} threads, Python {platform.python_version()}",
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return "commit " + subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


# ---- who uses the processors -----------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process so far; 0 where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Who used the processors since it was made: this process and `pids`, strangers, or the host that runs this one."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._start = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        """Seconds of all processors together: (busy, stolen by the host, all, of which ours is busy)."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            fields = ["0"] * 8
        user, nice, system, idle, wait, irq, soft, steal = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields)
        busy = user + nice + system + irq + soft
        ours = sum(os.times()[:4]) + sum(map(cpu_seconds, self._pids))
        return busy, steal, busy + steal + idle + wait, ours

    def shares(self) -> dict[str, float]:
        """{"strangers": .., "steal": ..}: of all processors' time, what other processes and the host took."""
        busy, steal, total, ours = (now - start for now, start in zip(self._now(), self._start, strict=True))
        total = max(total, 1e-9)
        return {"strangers": max(busy - ours, 0.0) / total, "steal": steal / total}


# ---- figures ---------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 0) -> str:
    """median (lowest .. highest)"""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} .. {max(values):,.{digits}f})"


def interval(values: list[float], samples: int = 10000) -> tuple[float, float]:
    """A bootstrap interval that holds the median with 95 % confidence."""
    draw = random.Random(1)
    found = sorted(median(draw.choices(values, k=len(values))) for _ in range(samples))
    return found[round(0.025 * (samples - 1))], found[round(0.975 * (samples - 1))]
