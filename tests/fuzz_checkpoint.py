"""Damages checkpoints and converts them: each gives a sentence or a file, and nothing else, in bounded time.

    python tests/fuzz_checkpoint.py --count 5000 --seed 1

The kinds: torch's zip, its older stream, a zip whose pickle is damaged under a right checksum, and meta.pkl.
"""

from __future__ import annotations

import argparse
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from pygpt.convert import convert_checkpoint
from reference.nanogpt_checkpoint import checkpoint, save, save_meta, write_zip

import pygpt

SECONDS = 30  # a hang is what takes longer
KINDS = ("zip", "stream", "pickle", "meta")
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


class Fuzz:
    """Good files, and places for damaged ones, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        value = checkpoint(n_layer=1, n_embd=32, block_size=8)
        value.pop("optimizer")
        self.good = {"zip": save(folder / "good.pt", value).read_bytes()}
        with zipfile.ZipFile(folder / "good.pt") as archive:
            self.pickle = archive.read("good/data.pkl")
            names = archive.namelist()
            self.storages = {n.split("/")[-1]: archive.read(n) for n in names if n.startswith("good/data/")}
        self.good["stream"] = save(folder / "good.pt", value, legacy=True).read_bytes()
        self.good["meta"] = save_meta(folder / "good.pkl").read_bytes()
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
        if kind == "meta":
            path.write_bytes(self.good["zip"])
            vocabulary = {"meta": self.folder / "meta.tmp"}
            vocabulary["meta"].write_bytes(mutated(self.good["meta"], rng))
        elif kind == "pickle":
            write_zip(path, mutated(self.pickle, rng), self.storages)
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
        rest = {p.name for p in self.folder.iterdir()} - {"good.pt", "good.pkl", "text.txt", "ckpt.pt", "meta.tmp"}
        assert not rest, f"left behind: {rest}"
        return sentence


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--count", type=int, default=5000)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    begin, converted = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for i in range(o.count):
            kind = KINDS[i % len(KINDS)]
            try:
                converted += fuzz.run(kind, o.seed + i) == "converted"
            except BaseException:
                print(
                    f"failed: kind {kind}, seed {o.seed + i}; the file is kept as ckpt.bad and meta.bad",
                    file=sys.stderr,
                )
                for name in ("ckpt.pt", "meta.tmp"):
                    if (Path(folder) / name).exists():
                        Path(name.split(".")[0] + ".bad").write_bytes((Path(folder) / name).read_bytes())
                raise
    seconds = time.perf_counter() - begin
    print(f"{o.count} damaged checkpoints in {seconds:.0f} s: {converted} converted, {o.count - converted} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
