"""What pygpt is measured by besides the peer: PyTorch's sampling loop, its types, its pool, its start, conversions.

PARTS is the table: each row's first function measures, the second writes what was found as Markdown. Needs PyTorch and
nanoGPT's slow twin (tests/reference/gpt.py), which are imported by what needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import ROOT, THREADS, spread

import pygpt

sys.path.insert(0, str(ROOT / "tests"))

SHAPES = {  # layers, heads, width, context, vocabulary, biases; tokens that are sampled
    "0.8M (4 layers, 128 wide, context 64)": ((4, 4, 128, 64, 65, False), 500),
    "10.6M (6 layers, 384 wide, context 256)": ((6, 6, 384, 256, 65, False), 500),
    "124M (12 layers, 768 wide, context 1024)": ((12, 12, 768, 1024, 50304, True), 100),
}
LARGE = "124M (12 layers, 768 wide, context 1024)"


def shapes(quick: bool) -> dict[str, tuple[tuple, int]]:
    return {name: shape for name, shape in SHAPES.items() if name != LARGE or not quick}


def model_files(folder: Path, name: str, types: list[str]) -> tuple[Any, dict[str, Path]]:
    """A random model of a shape, in PyTorch and converted to each type."""
    import torch
    from pygpt.convert import convert_checkpoint
    from reference.gpt import Config, FastAttention, checkpoint, random_gpt

    config = Config(*SHAPES[name][0])
    model = random_gpt(config, attention=FastAttention)
    torch.save(checkpoint(model), folder / "ckpt.pt")
    (folder / "text.txt").write_text("".join(chr(0x100 + i) for i in range(config.vocab_size)), encoding="utf-8")
    paths = {}
    for type in types:
        paths[type] = folder / f"{config.n_embd}-{type}.gguf"
        text = folder / "text.txt" if config.vocab_size < 50257 else None
        convert_checkpoint(folder / "ckpt.pt", paths[type], type=type, text=text)
    return model, paths


# ---- against PyTorch -------------------------------------------------------------------------------------------------


def measure_pytorch(folder: Path, n_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Sampling as nanoGPT's sample.py does by default, against the same from Python with pygpt."""
    import torch

    torch.set_num_threads(THREADS)
    found = []
    for name, (_, tokens) in shapes(quick).items():
        tokens = 20 if quick else tokens
        reference, paths = model_files(folder, name, ["q8_0"])
        ours, theirs = [], []
        with pygpt.Model(paths["q8_0"], threads=THREADS) as engine:
            for i in range(n_rounds + 1):
                start = time.perf_counter()
                engine.complete([1], tokens, temperature=0.8, top_k=200, seed=i)
                ours.append(tokens / (time.perf_counter() - start))
                start = time.perf_counter()
                reference.sample(torch.tensor([[1]]), tokens, 0.8, 200)
                theirs.append(tokens / (time.perf_counter() - start))
                time.sleep(0.5)  # PyTorch's threads go on spinning for a while
        # the first round warms up
        found.append({"model": name, "tokens": tokens, "own": ours[1:], "pytorch": theirs[1:]})
    return [{**row, "version": torch.__version__} for row in found]


def write_pytorch(found: list[dict[str, Any]]) -> str:
    text = f"""## Sampling from Python, against nanoGPT's loop in PyTorch {found[0]["version"]}

Random weights, prompt of one token, temperature 0.8, top-k 200. PyTorch evaluates the cropped window anew for every
token, in float32, as nanoGPT's sample.py does; pygpt samples from the q8_0 file with its default `--on-full jump`.
Tokens per second.

| model | tokens | PyTorch | pygpt | ratio of each round |
|---|---|---|---|---|
"""
    for row in found:
        ratio = [a / b for a, b in zip(row["own"], row["pytorch"], strict=True)]
        text += f"| {row['model']} | {row['tokens']} | {spread(row['pytorch'], 1)} | {spread(row['own'])} | "
        text += f"**{spread(ratio, 1)}** |\n"
    return text


# ---- types -----------------------------------------------------------------------------------------------------------


def measure_types(folder: Path, n_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """pygpt bench of every shape and type."""
    found = []
    for name in shapes(quick):
        _, paths = model_files(folder, name, ["f32", "f16", "q8_0", "q4_0"])
        for type, path in paths.items():
            n_ctx = SHAPES[name][0][3]
            prompt, generated = min(n_ctx, 512), min(n_ctx - 1, 128)
            command = [sys.executable, "-m", "pygpt", "bench", str(path), "-p", str(prompt), "-n", str(generated)]
            command += ["-t", str(THREADS), "-r", str(n_rounds), "--json"]
            bench = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            pp, tg = (row["tokens_per_second"] for row in bench["results"])
            size, read = path.stat().st_size, bench["model"]["bytes_per_token"] * tg
            row = {"model": name, "type": type, "bytes": size, "prompt": prompt, "pp": pp}
            found.append({**row, "generated": generated, "tg": tg, "read": read})
            path.unlink()
    return found


def write_types(found: list[dict[str, Any]]) -> str:
    text = """## Prompt and generation, by type

`pygpt bench`: random ids, empty cache, logits of the last token for the prompt, one token at a time without sampling
for the generation. GB/s: the weights that generation reads, times its tokens per second. Models below about 30 MB stay
in the processor's caches.

| model | type | file MB | prompt | tokens/s | generated | tokens/s | GB/s |
|---|---|---|---|---|---|---|---|
"""
    for row in found:
        text += f"| {row['model']} | {row['type']} | {row['bytes'] / 1e6:,.1f} | {row['prompt']} | {row['pp']:,.0f} | "
        text += f"{row['generated']} | {row['tg']:,.0f} | {row['read'] / 1e9:,.1f} |\n"
    return text


# ---- the pool --------------------------------------------------------------------------------------------------------


def measure_pool(folder: Path, n_rounds: int, quick: bool) -> str:
    program = ROOT / "build" / "native" / "pool_test"
    return subprocess.run([program, "--bench", str(THREADS)], capture_output=True, check=True, text=True).stdout.strip()


def write_pool(found: str) -> str:
    return f"""## The thread pool

{found} (medians of 101 batches of 1,000; a layer has five barriers, a token one run).
"""


# ---- start -----------------------------------------------------------------------------------------------------------


def measure_starts(folder: Path, n_rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of whole processes, the first of each not counted."""
    commands = {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`python -c 'import pygpt'`": [sys.executable, "-c", "import pygpt"],
        "`pygpt generate ROMEO: -n 1`": [sys.executable, "-m", "pygpt", "generate", "ROMEO:", "-n", "1"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(2 * n_rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in found.items()}


def write_starts(found: dict[str, list[float]]) -> str:
    rows = [f"| {name} | {spread(values, 3)} |\n" for name, values in found.items()]
    return f"""## From start to first token, with the bundled model

Whole processes, seconds.

| command | wall |
|---|---|
{"".join(rows)}"""


# ---- conversion ------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from pygpt.convert import convert_checkpoint
convert_checkpoint(sys.argv[1], sys.argv[2], type="q8_0")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measure_conversion(folder: Path, n_rounds: int, quick: bool) -> dict[str, float]:
    """A 124M-parameter checkpoint with its optimizer's state, as nanoGPT saves it while training."""
    import torch
    from reference.gpt import Config, checkpoint, random_gpt

    model = random_gpt(Config(*SHAPES[LARGE][0]))
    saved = checkpoint(model)
    state = {
        i: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for i, p in enumerate(model.parameters())
    }
    source, target = folder / "large.pt", folder / "large.gguf"
    torch.save({**saved, "optimizer": {"state": state, "param_groups": []}}, source)
    del model, saved, state
    start = time.perf_counter()
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(target)], capture_output=True, check=True, text=True
    )
    seconds = time.perf_counter() - start
    sizes = {"source": source.stat().st_size, "target": target.stat().st_size}
    return {**sizes, "seconds": seconds, "peak": int(peak.stdout) * 1024}


def write_conversion(found: dict[str, float]) -> str:
    return f"""## Converting a 124M-parameter checkpoint with its optimizer's state to q8_0

| checkpoint MB | file MB | seconds, with start | peak memory MB |
|---|---|---|---|
| {found["source"] / 1e6:,.0f} | {found["target"] / 1e6:,.0f} | {found["seconds"]:.1f} | {found["peak"] / 1e6:,.0f} |
"""


PARTS: dict[str, tuple[Callable[[Path, int, bool], Any], Callable[[Any], str]]] = {
    "pytorch": (measure_pytorch, write_pytorch),
    "types": (measure_types, write_types),
    "pool": (measure_pool, write_pool),
    "starts": (measure_starts, write_starts),
    "conversion": (measure_conversion, write_conversion),
}


def measure(name: str, n_rounds: int, quick: bool) -> Any:
    """Whatever a part finds, as JSON can hold it."""
    with tempfile.TemporaryDirectory() as folder:
        return PARTS[name][0](Path(folder), n_rounds, quick)
