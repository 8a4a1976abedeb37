"""make bench: every speed that pygpt claims, measured in one run, into bench/results.md with this machine's limits.

    python bench/run.py [--rounds 5] [--skip-large]

Rivals run in turn, round after round, and are compared by the ratios of their rounds; medians are reported, with the
lowest and highest. Nothing else may run meanwhile. Needs PyTorch, which plays nanoGPT's own sampling loop
(tests/reference/gpt.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
THREADS = 2

import torch  # noqa: E402
from pygpt.convert import convert_checkpoint  # noqa: E402
from reference.gpt import GPT, Config, FastAttention, checkpoint, random_gpt  # noqa: E402

import pygpt  # noqa: E402
from pygpt import _lib  # noqa: E402

SHAPES = {
    "0.8M (4 layers, 128 wide, context 64)": Config(4, 4, 128, 64, 65, bias=False),
    "10.6M (6 layers, 384 wide, context 256)": Config(6, 6, 384, 256, 65, bias=False),
    "124M (12 layers, 768 wide, context 1024)": Config(12, 12, 768, 1024, 50304, bias=True),
}


def spread(values: list[float], digits: int = 0) -> str:
    """median (lowest .. highest)"""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} .. {max(values):,.{digits}f})"


def limits() -> tuple[float, float]:
    """(GB/s that both threads read, GMAC/s of 8-bit integers in registers)"""
    return _lib.measure_read(THREADS, 0.3) / 1e9, _lib.measure_mac(THREADS, 0.3) / 1e9


def model_files(folder: Path, name: str, types: list[str]) -> tuple[GPT, dict[str, Path]]:
    """A random model of a shape, in PyTorch and converted to each type."""
    config = SHAPES[name]
    model = random_gpt(config, attention=FastAttention)
    torch.save(checkpoint(model), folder / "ckpt.pt")
    (folder / "text.txt").write_text("".join(chr(0x100 + i) for i in range(config.vocab_size)), encoding="utf-8")
    paths = {}
    for type in types:
        paths[type] = folder / f"{config.n_embd}-{type}.gguf"
        text = folder / "text.txt" if config.vocab_size < 50257 else None
        convert_checkpoint(folder / "ckpt.pt", paths[type], type=type, text=text)
    return model, paths


def race_pytorch(folder: Path, rounds: int) -> list[str]:
    """Sampling 500 tokens as nanoGPT's sample.py does by default, against the same from Python with pygpt."""
    rows = []
    for name, tokens in list(zip(SHAPES, (500, 500, 100), strict=True))[:3]:
        reference, paths = model_files(folder, name, ["q8_0"])
        torch.set_num_threads(THREADS)
        ours, theirs = [], []
        with pygpt.Model(paths["q8_0"], threads=THREADS) as engine:
            for i in range(rounds + 1):
                start = time.perf_counter()
                engine.complete([1], tokens, temperature=0.8, top_k=200, seed=i)
                ours.append(tokens / (time.perf_counter() - start))
                start = time.perf_counter()
                reference.sample(torch.tensor([[1]]), tokens, 0.8, 200)
                theirs.append(tokens / (time.perf_counter() - start))
                time.sleep(0.5)  # PyTorch's threads go on spinning for a while
        ours, theirs = ours[1:], theirs[1:]  # the first round warms up
        ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append(f"| {name} | {tokens} | {spread(theirs, 1)} | {spread(ours)} | **{spread(ratio, 1)}** |")
        print(rows[-1], flush=True)
    return rows


def table_of_types(folder: Path, repeats: int) -> list[str]:
    """pygpt bench of every shape and type."""
    rows = []
    for name, config in SHAPES.items():
        _, paths = model_files(folder, name, ["f32", "f16", "q8_0", "q4_0"])
        for type, path in paths.items():
            prompt, generated = min(config.block_size, 512), min(config.block_size - 1, 128)
            command = [sys.executable, "-m", "pygpt", "bench", str(path), "-p", str(prompt), "-n", str(generated)]
            command += ["-t", str(THREADS), "-r", str(repeats), "--json"]
            found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            pp, tg = (row["tokens_per_second"] for row in found["results"])
            with pygpt.Model(path, threads=THREADS) as model:
                gigabytes = model.info.bytes_per_token * tg / 1e9
            size = path.stat().st_size / 1e6
            rows.append(
                f"| {name} | {type} | {size:,.1f} | {prompt} | {pp:,.0f} | {generated} | {tg:,.0f} | {gigabytes:,.1f} |"
            )
            print(rows[-1], flush=True)
            path.unlink()
    return rows


def wall(command: list[str], runs: int) -> list[float]:
    """Seconds of whole processes, the first one not counted."""
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return found[1:]


def starts(runs: int) -> list[str]:
    bare = wall([sys.executable, "-c", "pass"], runs)
    imported = wall([sys.executable, "-c", "import pygpt"], runs)
    first = wall([sys.executable, "-m", "pygpt", "generate", "ROMEO:", "-n", "1"], runs)
    rows = [
        ("`python -c pass`", bare),
        ("`python -c 'import pygpt'`", imported),
        ("`pygpt generate ROMEO: -n 1`", first),
    ]
    return [f"| {name} | {spread(values, 3)} |" for name, values in rows]


PEAK = """
import sys
from pygpt.convert import convert_checkpoint
convert_checkpoint(sys.argv[1], sys.argv[2], type="q8_0")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def convert_large(folder: Path) -> list[str]:
    """A 124M-parameter checkpoint with its optimizer's state, as nanoGPT saves it while training."""
    model = random_gpt(SHAPES["124M (12 layers, 768 wide, context 1024)"])
    saved = checkpoint(model)
    state = {
        i: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for i, p in enumerate(model.parameters())
    }
    torch.save({**saved, "optimizer": {"state": state, "param_groups": []}}, folder / "large.pt")
    del model, saved, state
    start = time.perf_counter()
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder / "large.pt"), str(folder / "large.gguf")],
        capture_output=True,
        check=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    sizes = [(folder / name).stat().st_size / 1e6 for name in ("large.pt", "large.gguf")]
    return [f"| {sizes[0]:,.0f} | {sizes[1]:,.0f} | {seconds:.1f} | {int(peak.stdout) * 1024 / 1e6:,.0f} |"]


def pool_cost() -> str:
    program = ROOT / "build" / "native" / "pool_test"
    return subprocess.run([program, "--bench", str(THREADS)], capture_output=True, check=True, text=True).stdout.strip()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--skip-large", action="store_true", help="leave the 124M model out (minutes, and 3 GB of disk)")
    o = p.parse_args()
    if o.skip_large:
        SHAPES.popitem()
    before = limits()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin, pool = starts(2 * o.rounds), pool_cost()
        race = race_pytorch(folder, o.rounds)
        types = table_of_types(folder, o.rounds)
        large = [] if o.skip_large else convert_large(folder)
    after = limits()
    text = f"""# Speeds

Made by `make bench` on {date.today()}: {processor()}, {os.cpu_count()} processors, {THREADS} threads, kernels
{_lib.isa_current()}, Python {platform.python_version()}, PyTorch {torch.__version__}, {o.rounds} rounds. Figures are
medians (lowest .. highest).

This machine's limits, before and after: linear reads from memory {before[0]:.1f} and {after[0]:.1f} GB/s, 8-bit
multiply-adds in registers {before[1]:.0f} and {after[1]:.0f} GMAC/s.

## Sampling from Python, against nanoGPT's loop in PyTorch

Random weights, prompt of one token, temperature 0.8, top-k 200. PyTorch evaluates the cropped window anew for every
token, in float32, as nanoGPT's sample.py does; pygpt samples from the q8_0 file with its default `--on-full jump`.
Tokens per second.

| model | tokens | PyTorch | pygpt | ratio of each round |
|---|---|---|---|---|
{chr(10).join(race)}

## Prompt and generation, by type

`pygpt bench`: random ids, empty cache, logits of the last token for the prompt, one token at a time without sampling
for the generation. GB/s: the weights that generation reads, times its tokens per second. Models below about 30 MB stay
in the processor's caches.

| model | type | file MB | prompt | tokens/s | generated | tokens/s | GB/s |
|---|---|---|---|---|---|---|---|
{chr(10).join(types)}

## The thread pool

{pool} (medians of 101 batches of 1,000; a layer has five barriers, a token one run).

## From start to first token

Whole processes, seconds.

| command | wall |
|---|---|
{chr(10).join(begin)}

"""
    if large:
        text += f"""## Converting a 124M-parameter checkpoint with its optimizer's state to q8_0

| checkpoint MB | file MB | seconds, with start | peak memory MB |
|---|---|---|---|
{chr(10).join(large)}
"""
    (ROOT / "bench" / "results.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
