"""Says what a file looks like that no source recognises. It loads nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from .checkpoint import Input
from .torch_file import LEGACY_MAGIC, ZIP_MAGIC
from .unpickle import Stub, shown

UNKNOWN = "this kind of checkpoint is not supported yet"

# first bytes of files that torch.save did not write
MAGICS = (
    (b"GGUF", "is a GGUF file already; `pygpt quantize` changes its type"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    ((0x616B3432).to_bytes(4, "little"), f"looks like a model of llama2.c (export version 1 or 2); {UNKNOWN}"),
    ((20240326).to_bytes(4, "little"), f"looks like a GPT-2 of llm.c; {UNKNOWN}"),
    ((20240803).to_bytes(4, "little"), f"looks like a Llama 3 of llm.c; {UNKNOWN}"),
    (b"\x93NUMPY", "is an array of numpy, not a checkpoint; expected a file of torch.save"),
    (b"\x89HDF", f"looks like a file of Keras or h5py; {UNKNOWN}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
)

Names = Mapping[str, Any]

# state_dicts by their names and shapes, first match wins
KINDS: tuple[tuple[str, Callable[[Names], object]], ...] = (
    ("nanochat", lambda w: "transformer.h.0.attn.c_q.weight" in w),
    (
        "weights of nanoGPT, minGPT, build-nanogpt or llm.c, but without nanoGPT's model_args",
        lambda w: is_fused(w, 0),
    ),
    ("GPT-2 of Hugging Face, without its config.json", lambda w: is_fused(w, 1)),
    ("Karpathy's lecture gpt.py", lambda w: "blocks.0.sa.heads.0.key.weight" in w),
    ("Karpathy's lecture bigram.py", lambda w: "token_embedding_table.weight" in w and len(w) == 1),
    ("minGPT of before June 2022", lambda w: "blocks.0.attn.key.weight" in w and "tok_emb.weight" in w),
    ("llama2.c or Meta's Llama", lambda w: "layers.0.attention.wq.weight" in w and "tok_embeddings.weight" in w),
    (
        "nanochat of Hugging Face",
        lambda w: "model.layers.0.mlp.fc1.weight" in w and "model.layers.0.input_layernorm.weight" not in w,
    ),
    (
        "Llama or a relative of Hugging Face, without its config.json",
        lambda w: "model.layers.0.self_attn.q_proj.weight" in w,
    ),
    (
        "the Transformer of attention-is-all-you-need-pytorch",
        lambda w: "encoder.layer_stack.0.slf_attn.w_qs.weight" in w,
    ),
)


def is_fused(weights: Names, axis: int) -> bool:
    """Is there a c_attn with three times its other side on `axis`? Linear has it on 0, Conv1D on 1."""
    shapes = [
        weights[name].shape
        for name in ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight")
        if name in weights
    ]
    return bool(shapes) and len(shapes[0]) == 2 and shapes[0][axis] == 3 * shapes[0][1 - axis]


def by_bytes(path: str) -> str | None:
    """What a file is that torch.save cannot have written; None if it may have."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return None
    for magic, kind in MAGICS:
        if head.startswith(magic):
            return kind
    if not head:
        return "is empty; expected a checkpoint of torch.save"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= os.path.getsize(path):
        return "looks like a file of safetensors; it is converted with its folder, by the config.json beside it"
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "is a pickle of Python but not of torch.save; expected a checkpoint such as nanoGPT's ckpt.pt"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"is a text ({shown(head[:24].decode())}...); expected a checkpoint of torch.save"
    return f"is not a file of torch.save: expected a zip or torch's older stream, found the bytes {head[:8].hex(' ')}"


def by_content(source: Input) -> str:
    """What the object in a file of torch.save looks like."""
    value, weights = source.value, source.weights
    for kind, matches in KINDS:
        if matches(weights):
            return f"looks like {kind}; {UNKNOWN}"
    if weights:
        return (
            f"holds tensors of an unknown model ({shown(next(iter(weights)))} and {len(weights) - 1} more); {UNKNOWN}"
        )
    if type(value) is Stub:
        return f"holds a pickled {shown(str(value.function))}, not weights; save its state_dict() instead"
    if type(value) is dict:
        keys = ", ".join(shown(key) for key in list(value)[:6])
        return f"holds a dictionary without weights (keys: {keys or 'none'}); expected one such as nanoGPT's ckpt.pt"
    return f"holds {shown(value)}; expected a checkpoint such as nanoGPT's ckpt.pt"
