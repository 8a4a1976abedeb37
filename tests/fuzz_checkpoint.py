"""Damages checkpoints and converts them: each gives a sentence or a file, and nothing else, in bounded time and memory.

    python tests/fuzz_checkpoint.py --count 5000 --seed 1

The kinds: torch's zip, its older stream, a zip whose pickle is damaged under a right checksum, the same of a model that
was pickled whole, meta.pkl, and a tokenizer.pkl of tiktoken.
"""

from __future__ import annotations

import argparse
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from pygpt.convert import convert_checkpoint
from reference.lecture import Config, random_gpt
from reference.nanogpt_checkpoint import TEXT, checkpoint, save, save_meta, write_zip

import pygpt

SECONDS = 30  # a hang is what takes longer
MEMORY = 3 << 30  # bytes of address space; the libraries alone take one of these three GB
KINDS = ("zip", "stream", "pickle", "module", "meta", "tokenizer")
NUMBERS = [struct.pack(f, n) for f, n in (("<I", 0xFFFFFFFF), ("<Q", 1 << 62), ("<i", -1), ("<Q", 0), ("<I", 1 << 31))]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same with one to four accidents."""
    d = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, n = rng.randrange(len(d) + 1), rng.choice((1, 2, 8, 64))
        accident = rng.randrange(7)
        if accident == 0 and d:
            d[at % len(d)] ^= 1 << rng.randrange(8)
        elif accident == 1 and d:
            d[at % len(d)] = rng.randrange(256)
        elif accident == 2:
            del d[at : at + n]
        elif accident == 3:
            d[at:at] = rng.randbytes(n)
        elif accident == 4:
            other = rng.randrange(len(d) + 1)
            d[at : at + n] = d[other : other + n]
        elif accident == 5:
            number = rng.choice(NUMBERS)
            d[at : at + len(number)] = number
        elif rng.randrange(4) == 0:
            del d[at:]
    return bytes(d)


class Hang(BaseException):
    """No Exception, so that nothing on the way makes a sentence of it."""


def hang(*_: object) -> None:
    raise Hang(f"a damaged file took more than {SECONDS} s")


class Encoding:
    """Pickles as tiktoken's does, of the characters that the checkpoints here are of."""

    def __reduce__(self) -> tuple[object, ...]:
        ranks = {c.encode(): id for id, c in enumerate(TEXT[:-1])}
        state = {"pat_str": r"\p{L}+|[\s\S]", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": len(ranks)}}
        return object.__new__, (Encoding,), {"name": "x", **state}


def contents(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of torch's zip."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    storages = {name[len("data/") :]: data for name, data in entries.items() if name.startswith("data/")}
    return entries["data.pkl"], storages


class Fuzz:
    """Good files, and places for damaged ones, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        value = checkpoint(n_layer=1, n_embd=32, block_size=8)
        value.pop("optimizer")
        self.good = {"zip": save(folder / "good.pt", value).read_bytes()}
        self.contents = {"pickle": contents(folder / "good.pt")}
        save(folder / "good.pt", random_gpt(Config(n_embd=12, n_head=2, n_layer=1, n_ctx=8)))
        self.contents["module"] = contents(folder / "good.pt")
        self.good["stream"] = save(folder / "good.pt", value, legacy=True).read_bytes()
        self.good["meta"] = save_meta(folder / "good.pkl").read_bytes()
        self.good["tokenizer"] = pickle.dumps(Encoding())
        self.text = folder / "text.txt"
        (folder / "ckpt.pt").write_bytes(self.good["zip"])
        convert_checkpoint(folder / "ckpt.pt", folder / "out.gguf", text=self.text)
        self.converted = (folder / "out.gguf").read_bytes()
        (folder / "out.gguf").unlink()

    def run(self, kind: str, seed: int) -> str:
        """One damaged file: "converted", or the sentence. Raises AssertionError for anything else.

        A zip has checksums: what is converted in spite of damage must be what the undamaged file gives.
        """
        rng = random.Random(f"{kind} {seed}")
        path, out = self.folder / "ckpt.pt", self.folder / "out.gguf"
        vocabulary = {"text": self.text}
        if kind in ("meta", "tokenizer"):
            path.write_bytes(self.good["zip"])
            vocabulary = {kind: self.folder / "vocabulary.tmp"}
            vocabulary[kind].write_bytes(mutated(self.good[kind], rng))
        elif kind in self.contents:
            pkl, storages = self.contents[kind]
            write_zip(path, mutated(pkl, rng), storages)
        else:
            path.write_bytes(mutated(self.good[kind], rng))
        signal.signal(signal.SIGALRM, hang)
        signal.alarm(SECONDS)
        try:
            convert_checkpoint(path, out, "q8_0", **vocabulary)
            sentence = "converted"
            assert kind != "zip" or out.read_bytes() == self.converted, (
                "damaged, not noticed, and converted to something else"
            )
        except pygpt.Error as error:
            sentence = str(error)
            assert "\n" not in sentence and 20 < len(sentence) < 600, f"no sentence: {sentence!r}"
            assert not out.exists(), "an error, and yet a file"
        finally:
            signal.alarm(0)
            out.unlink(missing_ok=True)
        ours = {"good.pt", "good.pkl", "text.txt", "ckpt.pt", "vocabulary.tmp"}
        rest = {p.name for p in self.folder.iterdir()} - ours
        assert not rest, f"left behind: {rest}"
        return sentence


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--count", type=int, default=5000)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    begin, converted = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for i in range(o.count):
            kind = KINDS[i % len(KINDS)]
            try:
                converted += fuzz.run(kind, o.seed + i) == "converted"
            except BaseException:
                print(
                    f"failed: kind {kind}, seed {o.seed + i}; the file is kept as ckpt.bad and vocabulary.bad",
                    file=sys.stderr,
                )
                for name in ("ckpt.pt", "vocabulary.tmp"):
                    if (Path(folder) / name).exists():
                        Path(name.split(".")[0] + ".bad").write_bytes((Path(folder) / name).read_bytes())
                raise
    seconds = time.perf_counter() - begin
    print(f"{o.count} damaged checkpoints in {seconds:.0f} s: {converted} converted, {o.count - converted} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
