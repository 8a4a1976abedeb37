"""make bench: every speed that pygpt claims, into bench/results.md and bench/results.svg.

    python bench/run.py [--only PATTERN] [--rounds 5] [--quick] [--list] [--render] [--peer PYTHON]

What was measured stays in build/bench/results.json, so that parts can be measured anew, each by itself: the pages are
always written from all of it. Nothing else may run meanwhile. --quick proves that everything runs, in small amounts;
its figures mean nothing and go to build/bench/quick.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import agreement
import exactness
import own
import report
from machine import BUILD, ROOT, describe, limits, limits_text
from peer import Missing, peer_python
from race import WORKS, race
from worker import WorkerError


class Store:
    """{"runs": {when: machine}, "items": {name: what was found, and in which run}} in a file, saved at every change."""

    def __init__(self, path: Path, n_rounds: int) -> None:
        self._path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}, "items": {}}
        self._name = time.strftime("%Y-%m-%d %H:%M:%S")
        self._run = {**describe(), "rounds": n_rounds, "before": limits()}

    def keep(self, name: str, item: dict[str, Any]) -> None:
        self.data["items"][name] = {"run": self._name, **item}
        used = {item["run"] for item in self.data["items"].values()}
        runs = {**self.data["runs"], self._name: self._run}
        self.data["runs"] = {run: machine for run, machine in runs.items() if run in used}
        self._save()
        print(f"{name}: {item.get('error', 'measured')}", flush=True)

    def finish(self) -> None:
        self._run["after"] = limits()
        print(f"limits before: {limits_text(self._run['before'])}\nlimits after:  {limits_text(self._run['after'])}")
        self._save()

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1))
        os.replace(part, self._path)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", metavar="PATTERN", default="", help="a regular expression: what --list shows and it finds")
    p.add_argument("--rounds", type=int, metavar="N", help="default 5")
    p.add_argument("--quick", action="store_true", help="small amounts, 2 rounds, no 124M model in PyTorch")
    p.add_argument("--list", action="store_true", help="what there is to measure")
    p.add_argument("--render", action="store_true", help="measure nothing, write the pages from what is kept")
    p.add_argument("--peer", type=Path, metavar="PYTHON", help="one that has llama_cpp; default: it is built")
    o = p.parse_args()
    kept = BUILD / ("quick.json" if o.quick else "results.json")
    page = BUILD / "quick.md" if o.quick else ROOT / "bench" / "results.md"
    if o.render:
        write_pages(json.loads(kept.read_text()), page)
        return 0
    works = [work for work in WORKS if re.search(o.only, work.name)]
    parts = [name for name in own.PARTS if re.search(o.only, name) and not (o.quick and name == "conversion")]
    compared = [part for part in (agreement, exactness) if re.search(o.only, part.NAME) and not o.quick]
    if o.list or not (works or parts or compared):
        print(
            "\n".join([work.name for work in works] + [part.NAME for part in compared] + parts)
            or f"nothing is called {o.only!r}: see --list"
        )
        return not o.list

    n_rounds = o.rounds or (2 if o.quick else 5)
    BUILD.mkdir(parents=True, exist_ok=True)
    failed = 0
    try:
        peer = (o.peer or peer_python()) if works or compared else None
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        works, compared, failed = [], [], 1
    store = Store(kept, n_rounds)
    try:
        if works:
            race(works, peer, n_rounds, o.quick, store.keep)
        for part in compared:
            with tempfile.TemporaryDirectory() as folder:
                store.keep(part.NAME, {"found": part.measure(Path(folder), peer)})
    except WorkerError as error:
        print(f"bench: {error}", file=sys.stderr)
        failed = 1
    for name in parts:
        store.keep(name, {"found": own.measure(name, n_rounds, o.quick)})
    store.finish()
    write_pages(store.data, page)
    return failed or any("error" in item for item in store.data["items"].values())


def write_pages(data: dict[str, Any], page: Path) -> None:
    text = report.write_results(data)
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    page.with_name("results.svg").write_text(report.draw_ratios(data["items"]), encoding="utf-8")
    print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
