"""The peer: llama.cpp as llama-cpp-python builds it for this processor, in an environment of its own, built once."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

from machine import BUILD, ROOT
from worker import Worker

PEER = "llama-cpp-python==0.3.36"
FOLDER = BUILD / "peer"


class Missing(Exception):
    """Why there is no peer, and what would help."""


def peer_python() -> Path:
    """The interpreter of the peer's environment, which is made if it is not there yet."""
    python, ready, log = FOLDER / "bin" / "python", FOLDER / f"{PEER}.ready", BUILD / "peer.log"
    if ready.exists():
        return python
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise Missing(f"{PEER} is built from source, and there is no C++ compiler: install one (g++) or name it by CXX")
    print(f"building {PEER} into {FOLDER.relative_to(ROOT)}, which takes minutes", flush=True)
    venv.create(FOLDER, clear=True, with_pip=True)
    with log.open("wb") as out:
        # cmake and ninja come with it; no wheel, because those are not compiled for this processor
        command = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", PEER]
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Missing(f"{PEER} could not be installed; is there a network? pip's words: {log.relative_to(ROOT)}")
    ready.touch()
    return python


def peer_worker(python: Path) -> Worker:
    return Worker("llama.cpp", [str(python), str(ROOT / "bench" / "peer_worker.py")], BUILD / "peer_worker.log")
