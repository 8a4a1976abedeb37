"""Checkpoints in nanoGPT's layout, made on the spot from random weights that make every component matter.

Norm weights are far from 1, biases far from 0, position embeddings as large as token embeddings: what is dropped,
swapped or transposed shows. Also the raw form of torch's zip, to write by hand what torch would never write.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 16, "vocab_size": 65}
TEXT = "".join(chr(33 + i) for i in range(65))  # a training text for the vocabulary of 65 characters


def random_weights(bias: bool = True, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """nanoGPT's state_dict without the head, float32."""
    s = SIZES | sizes
    rng = np.random.default_rng(seed)
    C, V, T = s["n_embd"], s["vocab_size"], s["block_size"]
    w: dict[str, np.ndarray] = {}

    def matrix(name: str, n_out: int, n_in: int, scale: float, bias: bool) -> None:
        w[name + ".weight"] = scale * rng.standard_normal((n_out, n_in), dtype=np.float32)
        if bias:
            w[name + ".bias"] = 0.5 * rng.standard_normal(n_out, dtype=np.float32)

    def norm(name: str) -> None:
        w[name + ".weight"] = 1 + 0.5 * rng.standard_normal(C, dtype=np.float32)
        if bias:
            w[name + ".bias"] = 0.5 * rng.standard_normal(C, dtype=np.float32)

    matrix("transformer.wte", V, C, 0.5, False)
    matrix("transformer.wpe", T, C, 0.5, False)
    for i in range(s["n_layer"]):
        norm(f"transformer.h.{i}.ln_1")
        matrix(f"transformer.h.{i}.attn.c_attn", 3 * C, C, C**-0.5, bias)
        matrix(f"transformer.h.{i}.attn.c_proj", C, C, C**-0.5, bias)
        norm(f"transformer.h.{i}.ln_2")
        matrix(f"transformer.h.{i}.mlp.c_fc", 4 * C, C, C**-0.5, bias)
        matrix(f"transformer.h.{i}.mlp.c_proj", C, 4 * C, (4 * C) ** -0.5, bias)
    norm("transformer.ln_f")
    return w


def checkpoint(bias: bool = True, seed: int = 0, prefix: str = "", **sizes: int) -> dict[str, Any]:
    """What nanoGPT's train.py gives to torch.save, with a tied head and the optimizer's state."""
    import torch

    model = {prefix + name: torch.from_numpy(w) for name, w in random_weights(bias, seed, **sizes).items()}
    model[prefix + "lm_head.weight"] = model[prefix + "transformer.wte.weight"]
    moments = {i: {"step": torch.tensor(10.0), "exp_avg": torch.zeros_like(w)} for i, w in enumerate(model.values())}
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99), "params": [*moments]}]},
        "model_args": {**SIZES, **sizes, "bias": bias, "dropout": 0.0},
        "iter_num": 10,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "dataset": "letters", "init_from": "scratch", "learning_rate": 1e-3},
    }


def save(path: Path, value: object, legacy: bool = False) -> Path:
    """torch.save, with the training text beside it as text.txt."""
    import torch

    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    path.with_name("text.txt").write_text(TEXT, encoding="utf-8")
    return path


def save_meta(path: Path, characters: str = TEXT, **changes: object) -> Path:
    """meta.pkl as nanoGPT's prepare.py writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    meta["stoi"] = {c: i for i, c in enumerate(characters)}
    path.write_bytes(pickle.dumps(meta | changes))
    return path


def write_zip(path: Path, pkl: bytes, storages: Mapping[str, bytes] | None = None, **changes: Any) -> Path:
    """torch's zip around any pickle. changes: compression, or entries, more of them by their whole names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", changes.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", pkl)
        archive.writestr("archive/version", b"3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in changes.get("entries", {}).items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())
    return path
