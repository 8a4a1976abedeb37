"""pygpt against llama.cpp: the works, the rounds in which both do them by turns, what is kept of each round.

Only one of them computes at a time; the other's processor time is watched, so that an idle one does not disturb.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import shapes
from machine import BUILD, ROOT, THREADS, Watch, cpu_seconds, limits
from peer import peer_worker
from worker import Worker, WorkerError

from pygpt._lib import File

MODELS = BUILD / "models"
PAUSE = 0.1  # seconds between two turns, in which threads that still spin fall asleep
PROMPT = "Once upon a time"
FIRST_TOKEN = """
import sys
from llama_cpp import Llama
llm = Llama(model_path=sys.argv[1], n_threads=int(sys.argv[2]), verbose=False)
print(llm(sys.argv[3], max_tokens=1)["choices"][0]["text"])
"""


@dataclass(frozen=True)
class Work:
    """What both do. kind: a row of KINDS. at_least, aim: ratios to llama.cpp, above 1 where pygpt is better."""

    kind: str
    shape: str
    type: str
    n: int
    at_least: float = 1.0
    aim: float | None = None
    depth: int = 0  # tokens in the cache before
    n_seq: int = 1
    repeat: int = 1  # so often per round: a round should take a tenth of a second

    @property
    def name(self) -> str:
        words = {"prefill": f"prefill {self.n}", "decode": f"decode {self.n}", "sample": f"sample {self.n}"}
        words |= {"memory": f"memory at {self.n}", "start": "start to first token"}
        words |= {"together": f"decode {self.n_seq} x {self.n} together"}
        behind = f" at depth {self.depth}" if self.depth else ""
        return f"{words[self.kind]}{behind}, {self.shape} {self.type}"

    @property
    def file(self) -> str:
        return f"{self.shape}-{self.type}.gguf"

    @property
    def tokens(self) -> int:
        return self.n * self.n_seq * self.repeat

    def quick(self) -> Work:
        return replace(self, n=min(self.n, 8), depth=min(self.depth, 32), repeat=1)


WORKS = [
    *(
        Work("prefill", shape, type, n=512, at_least=2.0, aim=2.7)
        for shape in ("llama-3.2-1b", "qwen2.5-0.5b")
        for type in ("Q4_0", "Q8_0", "Q4_K_M")
    ),
    *(Work("prefill", "gpt2-124m", type, n=512, at_least=2.5, aim=4.0) for type in ("Q4_0", "Q8_0")),
    *(
        Work("decode", shape, type, n=128, at_least=1.1)
        for shape in ("llama-3.2-1b", "qwen2.5-0.5b")
        for type in ("Q4_0", "Q8_0", "Q4_K_M")
    ),
    *(Work("decode", "gpt2-124m", type, n=128, at_least=1.5, aim=2.0) for type in ("Q4_0", "Q8_0")),
    Work("decode", "llama-3.2-1b", "Q4_0", n=128, at_least=1.2, aim=1.5, depth=4096),
    Work("together", "llama-3.2-1b", "Q4_0", n=32, n_seq=8, at_least=2.0, aim=3.5),
    Work("sample", "nanogpt-10m", "Q8_0", n=128, at_least=2.0, aim=4.0, repeat=5),
    Work("sample", "nanogpt-0.8m", "Q8_0", n=63, at_least=3.0, aim=6.0, repeat=40),
    Work("start", "llama-3.2-1b", "Q4_0", n=1, at_least=3.0, aim=7.5),
    Work("memory", "llama-3.2-1b", "Q4_0", n=512, at_least=1.0),
]


@dataclass(frozen=True)
class Kind:
    """unit: tok/s, or what is better when smaller. own, peer: the workers' commands. settings: the peer's choices."""

    unit: str
    own: str = ""
    peer: str = ""
    settings: tuple[dict[str, Any], ...] = ({"flash": "off"}, {"flash": "on"})


ONE_OR_TWO = tuple({"flash": flash, "threads": threads} for threads in (1, 2) for flash in ("off", "on"))
KINDS = {
    "prefill": Kind("tok/s", "pp", "pp"),
    "decode": Kind("tok/s", "tg", "tg"),
    "together": Kind("tok/s", "batch", "batch"),
    "sample": Kind("tok/s", "text", "tg", ONE_OR_TWO),
    "start": Kind("s"),
    "memory": Kind("MB"),
}

# ---- rounds ----------------------------------------------------------------------------------------------------------


def rounds(n: int, turns: dict[str, Callable[[], float]], pids: dict[str, int] | None = None) -> list[dict[str, float]]:
    """n rounds of one turn each, the order changing from round to round, with the machine's limits right before.

    Each round: what the turns gave, by name; read and mac (limits); idle (the most processor time that one took while
    another had its turn, as a share of it); strangers and steal (see Watch).
    """
    found, pids = [], pids or {}
    for i in range(n):
        watch, idle = Watch(pids.values()), 0.0
        row = dict(limits())
        for k in range(len(turns)):
            name = list(turns)[(i + k) % len(turns)]
            time.sleep(PAUSE)
            before = {other: cpu_seconds(pid) for other, pid in pids.items() if other != name}
            begin = time.perf_counter()
            row[name] = turns[name]()
            wall = time.perf_counter() - begin
            idle = max([idle, *((cpu_seconds(pids[other]) - was) / wall for other, was in before.items())])
        found.append({**row, "idle": idle, **watch.shares()})
    return found


# ---- files -----------------------------------------------------------------------------------------------------------


def make_files(wanted: Iterable[tuple[str, str]], python: Path) -> None:
    """The files of (shape, type) that are not there yet, by llama.cpp from an F16 file per shape, which is deleted."""
    MODELS.mkdir(parents=True, exist_ok=True)
    changed = Path(shapes.__file__).stat().st_mtime
    missing: dict[str, list[str]] = {}
    for shape, type in dict.fromkeys(wanted):
        path = MODELS / f"{shape}-{type}.gguf"
        if not path.exists() or path.stat().st_mtime < changed:
            missing.setdefault(shape, []).append(type)
    for shape, types in missing.items():
        need, free = 3 * shapes.f16_bytes(shapes.SHAPES[shape]), shutil.disk_usage(MODELS).free
        if free < need:
            raise WorkerError(f"making {shape} takes {need / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free")
        print(f"making {shape} as {', '.join(types)}", flush=True)
        source, part = MODELS / f"{shape}-F16.part", MODELS / f"{shape}.part"
        try:
            shapes.write(shape, source)
            with peer_worker(python) as peer:
                for type in types:
                    peer("quantize", source=str(source), target=str(part), type=type, threads=THREADS)
                    part.rename(MODELS / f"{shape}-{type}.gguf")
        finally:
            source.unlink(missing_ok=True)
            part.unlink(missing_ok=True)


def describe_file(path: Path) -> dict[str, Any]:
    """Bytes and sha256, which also brings the file into memory, and what a token costs: see `share`."""
    digest = hashlib.sha256()
    with path.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    with File(path) as file:
        keys, arch, tensors = file.keys, file.keys["general.architecture"], file.tensors
        layers = [t for t in tensors.values() if t.name.startswith("blk.") and len(t.shape) == 2]
        head = tensors.get("output.weight") or tensors["token_embd.weight"]
        n_layer, n_head, n_kv, width = (
            keys[f"{arch}.{name}"]
            for name in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
        )
        return {
            "bytes": path.stat().st_size,
            "sha256": digest.hexdigest(),
            "weights": sum(t.bytes for t in layers) + head.bytes,  # bytes that a decoded token reads
            "cache": 2 * 2 * n_layer * n_kv * width // n_head,  # bytes per token before it, in 16 bits
            "layers": sum(math.prod(t.shape) for t in layers),  # multiply-adds per token
            "head": math.prod(head.shape),  # of its logits
            "attention": 2 * n_layer * width,  # per token before it
        }


def share(work: Work, file: dict[str, Any], speed: float, row: dict[str, float]) -> tuple[float, str]:
    """What a speed is of the round's limits: of memory's ("read") or of arithmetic's ("mac"), whichever is closer."""
    seconds, n, ctx = work.tokens / speed / work.repeat, work.n, work.depth + (work.n + 1) / 2
    if work.kind == "prefill":
        read = file["weights"]
        mac = n * (file["layers"] + file["attention"] * ctx) + file["head"]
    else:
        read = n * (file["weights"] + work.n_seq * file["cache"] * ctx)
        mac = n * work.n_seq * (file["layers"] + file["head"] + file["attention"] * ctx)
    return max((read / seconds / row["read"], "read"), (mac / seconds / row["mac"], "mac"))


# ---- the race --------------------------------------------------------------------------------------------------------


def race(works: list[Work], python: Path, n_rounds: int, quick: bool, keep: Callable[[str, dict], None]) -> None:
    """Runs the works, file by file, and hands each one's findings to `keep` when it is done."""
    make_files(((work.shape, work.type) for work in works), python)
    for name in dict.fromkeys(work.file for work in works):
        path = MODELS / name
        file = {"name": name, **describe_file(path)}
        print(f"{name}: {file['bytes'] / 1e6:,.1f} MB, sha256 {file['sha256']}", flush=True)
        for work in (work for work in works if work.file == name):
            amount = work.quick() if quick else work
            turn = {"start": race_start, "memory": race_memory}.get(work.kind, race_workers)
            try:
                found = turn(amount, path, python, n_rounds)
            except WorkerError as error:
                found = {"error": str(error).replace(f"{ROOT}/", "")}
            keep(work.name, {"work": asdict(amount), "file": file, **found})


def own_worker() -> Worker:
    return Worker("pygpt", [sys.executable, str(ROOT / "bench" / "own_worker.py")], BUILD / "own_worker.log")


def race_workers(work: Work, path: Path, python: Path, n_rounds: int) -> dict[str, Any]:
    kind = KINDS[work.kind]
    with ExitStack() as stack:
        own, peer = stack.enter_context(own_worker()), stack.enter_context(peer_worker(python))

        def load(engine: Worker, settings: dict[str, Any]) -> None:
            n_ctx = min(work.depth + max(work.n, 16), shapes.SHAPES[work.shape].ctx)
            engine("load", **{"path": str(path), "threads": THREADS, "n_ctx": n_ctx, "n_seq": work.n_seq, **settings})

        def speed(engine: Worker, command: str) -> float:
            return work.tokens / engine(command, **arguments(work, command))

        load(own, {})
        load(peer, {})
        found: dict[str, Any] = {"agreement": agreement(own, peer, shapes.SHAPES[work.shape].n_vocab)}
        trials = []
        for settings in kind.settings:
            load(peer, settings)
            trials.append({"settings": settings, "speed": max(speed(peer, kind.peer) for _ in range(2))})
        best = max(trials, key=lambda trial: trial["speed"])
        if best is not trials[-1]:
            load(peer, best["settings"])
            speed(peer, kind.peer)
        speed(own, kind.own)
        turns = {"own": partial(speed, own, kind.own), "peer": partial(speed, peer, kind.peer)}
        found |= {"trials": trials, "settings": best["settings"], "version": peer("versions")}
        return found | {"rounds": rounds(n_rounds, turns, {"own": own.pid, "peer": peer.pid})}


def arguments(work: Work, command: str) -> dict[str, int]:
    return {
        "pp": {"n": work.n, "repeat": work.repeat},
        "tg": {"n": work.n, "depth": work.depth, "repeat": work.repeat},
        "text": {"n": work.n, "repeat": work.repeat},
        "batch": {"n": work.n, "n_seq": work.n_seq},
    }[command]


def agreement(own: Worker, peer: Worker, n_vocab: int) -> float:
    """How far the two engines' logits lie apart, relative to how far they vary. Both must compute the same model."""
    ids = [(i * 7919 + 13) % n_vocab for i in range(16)]
    a, b = own("logits", ids=ids), peer("logits", ids=ids)
    mean = sum(b) / len(b)
    apart = math.dist(a, b) / math.dist(b, [mean] * len(b))
    if not apart < 0.2:
        raise WorkerError(f"pygpt and llama.cpp compute different models: their logits lie {apart:.2f} apart")
    return apart


def race_start(work: Work, path: Path, python: Path, n_rounds: int) -> dict[str, Any]:
    """Seconds of whole processes that write one token, the file being cached."""
    own = [sys.executable, "-m", "pygpt", "generate", PROMPT, "-m", str(path), "-n", "1", "-t", str(THREADS)]
    peer = [str(python), "-c", FIRST_TOKEN, str(path), str(THREADS), PROMPT]
    turns = {"own": partial(process_seconds, own), "peer": partial(process_seconds, peer)}
    for turn in turns.values():
        turn()
    return {"rounds": rounds(n_rounds, turns)}


def process_seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=BUILD)  # python -m looks into its folder first
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise WorkerError(f"{command[2]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return seconds


def race_memory(work: Work, path: Path, python: Path, n_rounds: int) -> dict[str, Any]:
    """Bytes of fresh processes after a prompt that fills the context, less what they had before they loaded the model.

    It does not vary: one round.
    """
    found: dict[str, dict[str, int]] = {}

    def turn(name: str, start: Callable[[], Worker]) -> float:
        with start() as engine:
            before = engine("memory")
            engine("load", path=str(path), threads=THREADS, n_ctx=work.n)
            engine("pp", n=work.n)
            after = engine("memory")
        found[name] = {key: after[key] - before[key] for key in before} | {"process": sum(before.values())}
        return found[name]["own"] / 1e6

    turns = {"own": partial(turn, "own", own_worker), "peer": partial(turn, "peer", partial(peer_worker, python))}
    return {"rounds": rounds(1, turns), "memory": found}
