"""make variants: does the converter find out what checkpoints do not say? Into bench/variants.md.

    python bench/variants.py [--minutes 3] [--only PATTERN] [--models FOLDER]

--only renews some rows of the page; --models keeps what is trained, and takes what is there already.

For each pair of equal names and different arithmetic a model is trained on the shipped Shakespeare with each of the
two, then converted without a hint. Right is the variant that it was trained with, or UNCLEAR where losses do not tell.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from pygpt.convert import convert_checkpoint  # noqa: E402
from reference import gpt, lecture, mingpt, nanochat, training  # noqa: E402

from pygpt import Error  # noqa: E402

TEXT = (ROOT / "examples/shakespeare/input.txt").read_text(encoding="utf-8")
N_CTX = 128


@dataclass
class Case:
    """A model that is trained, and what the converter should find."""

    name: str
    make: Callable[[Path, float], Path]  # (folder, seconds) -> the checkpoint
    truth: str  # the name of the right answer


def nanogpt_case(name: str) -> Callable[[Path, float], Path]:
    def make(folder: Path, seconds: float) -> Path:
        found, ids = training.characters(TEXT)
        c = gpt.Config(n_layer=4, n_head=4, n_embd=96, block_size=N_CTX, vocab_size=len(found), gelu=f"gelu_{name}")
        torch.manual_seed(0)
        model = gpt.GPT(c, gpt.FastAttention)
        training.train(model, model, ids, N_CTX, seconds=seconds)
        torch.save(gpt.checkpoint(model), folder / "ckpt.pt")
        return folder / "ckpt.pt"

    return make


def lecture_case(scale: str) -> Callable[[Path, float], Path]:
    def make(folder: Path, seconds: float) -> Path:
        found, ids = training.characters(TEXT)
        c = lecture.Config(n_vocab=len(found), n_ctx=N_CTX, n_embd=96, n_head=4, n_layer=4, scale=scale)
        torch.manual_seed(0)
        model = lecture.GPTLanguageModel(c)
        training.train(model, model, ids, N_CTX, seconds=seconds)
        torch.save(model.state_dict(), folder / "model.pt")
        return folder / "model.pt"

    return make


def mingpt_case(n_head: int) -> Callable[[Path, float], Path]:
    def make(folder: Path, seconds: float) -> Path:
        found, ids = training.characters(TEXT)
        c = mingpt.Config(n_vocab=len(found), n_ctx=N_CTX, n_embd=96, n_head=n_head, n_layer=4)
        torch.manual_seed(0)
        model = mingpt.GPT(c)
        training.train(model, model, ids, N_CTX, seconds=seconds)
        torch.save(model.state_dict(), folder / "model.pt")
        return folder / "model.pt"

    return make


def nanochat_case(generation: str, **constants: Any) -> Callable[[Path, float], Path]:
    """Weights of one generation, constants of another: sequences of 512, so that the short windows differ."""

    def make(folder: Path, seconds: float) -> Path:
        ranks = nanochat.train_ranks([TEXT[:200_000]], 503)
        encoding = nanochat.save_tokenizer(folder, ranks)
        ids = encoding.encode_ordinary(TEXT)
        changes = {"sequence_len": 512, "vocab_size": 512, "padded_vocab": 512, "n_embd": 96}
        changes |= {"n_head": 3, "n_kv_head": 3}
        c = nanochat.generation(generation, window_pattern="SSSL", **changes, **constants)
        torch.manual_seed(0)
        model = nanochat.GPT(c)
        training.train(model, model, ids, 512, seconds=seconds, batch=2)
        return nanochat.save(folder, model)

    return make


EARLY = "RoPE base 10000, qk scale 1, softcap "
N3 = {"qk_scale": 1.15, "short": "third"}
N4 = {"qk_scale": 1.2, "short": "quarter"}
CASES = (
    Case("nanoGPT, exact GELU", nanogpt_case("erf"), "erf"),
    Case("nanoGPT, tanh GELU", nanogpt_case("tanh"), "tanh"),
    Case("lecture, scale by the head", lecture_case("head"), "head"),
    Case("lecture, scale by the width", lecture_case("width"), "width"),
    Case("minGPT, 3 heads", mingpt_case(3), "3"),
    Case("minGPT, 6 heads", mingpt_case(6), "6"),
    Case("nanochat N2, softcap 15", nanochat_case("N2"), EARLY + "15"),
    Case("nanochat N2, softcap 20", nanochat_case("N2 softcap 20"), EARLY + "20"),
    Case("nanochat N3 weights, N3 constants", nanochat_case("N3"), "qk scale 1.15"),
    Case("nanochat N3 weights, N4 constants", nanochat_case("N3", **N4), "qk scale 1.2"),
    Case("nanochat N4 weights, N3 constants", nanochat_case("N4", **N3), "qk scale 1.15"),
    Case("nanochat N4 weights, N4 constants", nanochat_case("N4"), "qk scale 1.2"),
)


def trained(case: Case, minutes: float, models: Path) -> Path:
    """The checkpoint, in a folder of its own beside the text."""
    folder = models / f"{case.name}, {minutes:g} minutes".replace(", ", "-").replace(" ", "-")
    if not (folder / "path").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "input.txt").write_text(TEXT, encoding="utf-8")
        path = case.make(folder, 60 * minutes)
        (folder / "path").write_text(str(path.relative_to(folder)), encoding="utf-8")
    return folder / (folder / "path").read_text(encoding="utf-8")


def run(case: Case, minutes: float, models: Path | None) -> list[str]:
    """Rows of the table: one per candidate."""
    with tempfile.TemporaryDirectory() as folder:
        path = trained(case, minutes, models or Path(folder))
        try:
            report = convert_checkpoint(path, Path(folder) / "out.gguf", type="f32")
        except Error as error:  # it asks instead of guessing
            return [f"| {case.name} | {minutes:g} | | | | {str(error).partition(': ')[0]} |"]
    taken = next(t for t in report.proof.trials if t.is_taken)
    unclear = any("UNCLEAR" in line for line in report.assumptions)
    verdict = "unclear" if unclear else "right" if case.truth in taken.name else "WRONG"
    rows = []
    for t in report.proof.trials:
        behind = f"+{t.behind:.2g} ± {t.error:.1g}" if t.behind else "best"
        mark = f"taken: {verdict}" if t is taken else ""
        rows.append(f"| {case.name} | {minutes:g} | {t.name} | {t.nats:.4f} | {behind} | {mark} |")
    return rows


HEAD = """# What checkpoints do not say, found out

Models of 0.4 to 0.7 million parameters, trained for some minutes on examples/shakespeare and converted without a
hint (`make variants`). Losses are nats per token on the begin of the text, each at the temperature that suits it;
behind them how much worse than the best, with the standard error of the difference. Clear is more than three of these,
and 0.0001 or, of a model that has not learned much yet, 0.05.

| trained as | minutes | tried | loss | behind the best | |
|---|---|---|---|---|---|
"""


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=3.0, help="of training per model (default 3)")
    p.add_argument("--only", default="*", help="names to run, with * and ?")
    p.add_argument("--models", type=Path, help="a folder for the trained models")
    p.add_argument("--out", type=Path, default=ROOT / "bench/variants.md")
    o = p.parse_args()
    known = o.out.read_text(encoding="utf-8").splitlines() if o.out.exists() else []
    rows = {case.name: [row for row in known if row.startswith(f"| {case.name} |")] for case in CASES}
    lines: list[str] = []
    for case in CASES:
        if fnmatch.fnmatch(case.name, o.only):
            rows[case.name] = run(case, o.minutes, o.models)
            print("\n".join(rows[case.name]), flush=True)
            lines = [row for case in CASES for row in rows[case.name]]
            o.out.write_text(HEAD + "\n".join([*lines, ""]), encoding="utf-8")
    return int(any("WRONG" in row for row in lines))


if __name__ == "__main__":
    sys.exit(main())
