"""Findings to words and a picture: bench/results.md and bench/results.svg. Measures nothing."""

from __future__ import annotations

import math
from html import escape
from statistics import median
from typing import Any

import agreement
import exactness
import own
from machine import THREADS, interval, limits_text, spread
from race import KINDS, PROMPT, WORKS, Work, share

OFF = 0.1  # a round whose limits are so far from the medians of its run is flagged
BUSY = 0.05  # and one in which others had so much of the processors
CACHED = 30e6  # bytes of weights that stay in the processor's caches: memory is no limit


def ratios(item: dict[str, Any]) -> list[float]:
    """Of each round, above 1 where pygpt is better."""
    bigger = KINDS[item["work"]["kind"]].unit == "tok/s"
    return [row["own"] / row["peer"] if bigger else row["peer"] / row["own"] for row in item["rounds"]]


def flagged(items: dict[str, Any], item: dict[str, Any]) -> list[str]:
    """What was wrong with which rounds of an item."""
    same = [row for other in items.values() if other["run"] == item["run"] for row in other.get("rounds", ())]
    usual = {name: median(row[name] for row in same) for name in ("read", "mac")}
    found = []
    for i, row in enumerate(item["rounds"], 1):
        wrong = [f"{name} {row[name] / usual[name]:.2f}" for name in usual if abs(row[name] / usual[name] - 1) > OFF]
        wrong += [f"{name} {row[name]:.0%}" for name in ("strangers", "steal", "idle") if row[name] > BUSY]
        found += [f"round {i}: {', '.join(wrong)}"] if wrong else []
    return found


def by_work(items: dict[str, Any]) -> list[tuple[Work, dict[str, Any]]]:
    """The races among the items, in the order of the works."""
    return [(work, items[work.name]) for work in WORKS if work.name in items]


# ---- tables ----------------------------------------------------------------------------------------------------------


def race_row(items: dict[str, Any], work: Work, item: dict[str, Any]) -> str:
    unit, done = KINDS[work.kind].unit, Work(**item["work"])  # --quick does less
    targets = f"{work.at_least:.2f} | " + (f"{work.aim:.2f}" if work.aim else "")
    if "error" in item:
        return f"| {work.name} | | | not run: {item['error']} | | {targets} | | | | |"
    ratio, digits = ratios(item), 2 if unit == "s" else 1
    low, high = interval(ratio)
    reached = "aim" if work.aim and median(ratio) >= work.aim else "yes" if median(ratio) >= work.at_least else "**no**"
    figures = [f"{median(row[who] for row in item['rounds']):,.{digits}f} {unit}" for who in ("peer", "own")]
    shares = [""] * 2
    if unit == "tok/s" and item["file"]["weights"] > CACHED:
        for k, who in enumerate(("peer", "own")):
            found = [share(done, item["file"], row[who], row) for row in item["rounds"]]
            shares[k] = f"{median(part for part, _ in found):.0%} {found[0][1]}"
    cells = [*figures, f"**{median(ratio):.2f}** ({low:.2f} .. {high:.2f})", f"{min(ratio):.2f} .. {max(ratio):.2f}"]
    cells += [targets, reached, *shares, f"{len(flagged(items, item))} of {len(ratio)}"]
    return f"| {work.name} | {' | '.join(cells)} |"


def write_race(items: dict[str, Any]) -> str:
    found = by_work(items)
    version = next((item["version"] for _, item in found if "version" in item), "?")
    rows = [race_row(items, work, item) for work, item in found]
    return f"""## Against llama.cpp

{version}.

Both engines run the same bytes: random weights in the shapes of known models, quantized by llama.cpp with
its own mixture of types. {THREADS} threads. prefill: random ids into an empty cache, logits of the last one. decode:
one id per call, with its logits, without sampling. together: that many sequences, one id of each per call, all tokens
counted. sample: pygpt's `generate` from Python, with sampling (temperature 0.8, top-k 200) and text, against
llama.cpp's decode without either, with 1 or 2 threads, whichever is faster. start: whole processes, `pygpt generate
"{PROMPT}" -n 1` against a script that does the same with llama-cpp-python, the file being cached. memory: what a
process has of its own (smaps_rollup: Anonymous) after a prompt that fills the context, less what it had before loading
the model. llama.cpp runs with flash attention on or off, whichever was faster in a trial.

Both compute by turns, in rounds of changing order; figures are medians of the rounds. ratio: median of the rounds'
ratios, above 1 where pygpt is better, with its 95 % bootstrap interval, then the lowest and highest. of the limit: what
the speed is of what the round's memory bandwidth (read) or its 8-bit arithmetic (mac) would allow at most, whichever
is closer; none for models that stay in caches. flagged: rounds in which a limit was more than {OFF:.0%} off the run's
median, or in which others, the host or the engine whose turn it was not took more than {BUSY:.0%} of the processors.

![ratios](results.svg)

| work | llama.cpp | pygpt | ratio (95 %) | lowest .. highest | at least | aim | reached | llama.cpp of the limit \
| pygpt of the limit | flagged |
|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{write_details(items)}"""


def write_details(items: dict[str, Any]) -> str:
    """Settings, agreement, what was flagged, memory, files."""
    text = "| work | llama.cpp's settings, tok/s in the trial (chosen in bold) | logits apart | flagged rounds |\n"
    text += "|---|---|---|---|\n"
    done = [(work.name, item) for work, item in by_work(items) if "rounds" in item]
    for name, item in done:
        trials = [
            f"{'**' * (trial['settings'] == item['settings'])}"
            f"{', '.join(f'{key} {value}' for key, value in trial['settings'].items())}: {trial['speed']:,.1f}"
            f"{'**' * (trial['settings'] == item['settings'])}"
            for trial in item.get("trials", ())
        ]
        apart = f"{item['agreement']:.4f}" if "agreement" in item else ""
        text += f"| {name} | {'; '.join(trials)} | {apart} | {'; '.join(flagged(items, item))} |\n"
    text += "\nlogits apart: the distance of the two engines' logits after 16 ids, relative to their own spread.\n"
    for name, item in done:
        for who, row in item.get("memory", {}).items():
            text += f"\n{name}, {'pygpt' if who == 'own' else 'llama.cpp'}: {row['own'] / 1e6:,.1f} MB of its own, "
            text += f"{row['mapped'] / 1e6:,.1f} MB mapped from files, beside {row['process'] / 1e6:,.1f} MB before.\n"
    files = {item["file"]["name"]: item["file"] for _, item in by_work(items)}
    text += "\n| file | MB | sha256 |\n|---|---|---|\n"
    for name, file in sorted(files.items()):
        text += f"| {name} | {file['bytes'] / 1e6:,.1f} | `{file['sha256']}` |\n"
    return text


def write_runs(store: dict[str, Any]) -> str:
    lines = []
    for name, run in store["runs"].items():
        lines.append(f"- {name}: {run['processor']}, {run['system']}; {run['pygpt']}; {run['rounds']} rounds.")
        lines.append(f"  Limits before: {limits_text(run['before'])}.")
        if "after" in run:
            lines.append(f"  Limits after: {limits_text(run['after'])}.")
    every = [row for item in store["items"].values() for row in item.get("rounds", ())]
    if every:
        for key, words in (("read", "GB/s read from memory"), ("mac", "GMAC/s")):
            lines.append(f"- Limits in all rounds: {spread([row[key] / 1e9 for row in every], 1)} {words}.")
    return "\n".join(lines)


def write_results(store: dict[str, Any]) -> str:
    """The whole page."""
    items = store["items"]
    sections = [write_race(items)] if by_work(items) else []
    compared = {part.NAME: part.write for part in (agreement, exactness)}
    parts = compared | {name: write for name, (_, write) in own.PARTS.items()}
    for name, write in parts.items():
        if name in items:
            sections.append(write(items[name]["found"]))
    return f"""# Speeds

Made by `make bench`; figures are medians (lowest .. highest). Runs:

{write_runs(store)}

{chr(10).join(sections)}"""


# ---- the picture -----------------------------------------------------------------------------------------------------

ROW, LEFT, WIDTH, RIGHT = 24, 330, 460, 190  # pixels
GOOD, BAD, INK, PALE = "#2a7f62", "#c8553d", "#24292f", "#d0d7de"


def draw_ratios(items: dict[str, Any]) -> str:
    """A bar per work, from 1 to its ratio on a logarithmic axis, with its interval and its targets. 8 is the end."""
    bars = [(work, ratios(item)) for work, item in by_work(items) if "rounds" in item]
    ends = [math.log2(value) for _, ratio in bars for value in (median(ratio), *interval(ratio))]
    low, high = max(math.floor(min([-0.1, *ends])), -3), min(math.ceil(max([0.1, *ends])), 3)
    bottom = 56 + ROW * len(bars)

    def x(ratio: float) -> float:
        return LEFT + WIDTH * (min(max(math.log2(ratio), low), high) - low) / (high - low)

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    def text(at: float, y: float, words: str, style: str = "") -> str:
        return f'<text x="{at:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'

    out = [text(LEFT, 22, "pygpt relative to llama.cpp: right of 1 is better", 'font-weight="bold"')]
    for power in range(low, high + 1):
        out.append(line(x(2**power), 36, x(2**power), bottom, f'stroke="{PALE}"'))
        out.append(text(x(2**power), bottom + 18, f"{2**power:g}x", 'text-anchor="middle"'))
    for i, (work, ratio) in enumerate(bars):
        y, middle, (least, most) = 56 + ROW * i, median(ratio), interval(ratio)
        begin, end = sorted((x(1), x(middle)))
        colour = GOOD if middle >= work.at_least else BAD
        out.append(text(LEFT - 10, y + 4, work.name, 'text-anchor="end"'))
        out.append(f'<rect x="{begin:.1f}" y="{y - 8}" width="{end - begin:.1f}" height="16" fill="{colour}"/>')
        out.append(line(x(least), y, x(most), y, f'stroke="{INK}" stroke-width="2"'))
        for target in {work.at_least, work.aim} - {None, 1.0}:
            out.append(line(x(target), y - 10, x(target), y + 10, f'stroke="{INK}" stroke-dasharray="3 2"'))
        out.append(text(LEFT + WIDTH + 12, y + 4, f"{middle:.2f} ({least:.2f} .. {most:.2f})", f'fill="{colour}"'))
    out.append(line(x(1), 36, x(1), bottom, f'stroke="{INK}" stroke-width="1.5"'))
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{bottom + 30}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="{INK}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *out, "</svg>"]) + "\n"
