"""Writers of llm.c's files: GPT-2 from the twin in gpt.py, Llama 3 from the tensors of the twin in llama.py."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import torch
from reference.gpt import GPT
from reference.llama import Config, Tensors

GPT2_KINDS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")  # each with its bias


def float32(values: np.ndarray) -> bytes:
    return values.astype("<f4").tobytes()


def bfloat16(values: np.ndarray) -> bytes:
    rounded = torch.from_numpy(np.ascontiguousarray(values, np.float32)).bfloat16()
    return rounded.view(torch.int16).numpy().tobytes()


WRITE: dict[int, Callable[[np.ndarray], bytes]] = {3: float32, 5: bfloat16}


def header(*ints: int) -> bytes:
    return struct.pack(f"<{len(ints)}i", *ints).ljust(1024, b"\0")


def gpt2(model: GPT, version: int = 3, multiple: int = 128) -> bytes:
    """model_00000000.bin. Rows of padding are not zeros, as training leaves them: they must not arrive."""
    c, state = model.config, {name: w.detach().numpy() for name, w in model.state_dict().items()}
    n_rows = -(-c.vocab_size // multiple) * multiple
    wte = np.full((n_rows, c.n_embd), 9, np.float32)
    wte[: c.vocab_size] = state["transformer.wte.weight"]
    weights = [wte, state["transformer.wpe.weight"]]
    for kind in GPT2_KINDS:
        for part in ("weight", "bias"):
            weights += [state[f"transformer.h.{i}.{kind}.{part}"] for i in range(c.n_layer)]
    weights += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    ints = header(20240326, version, c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, n_rows)
    return ints + b"".join(map(WRITE[version], weights))


def llama3(c: Config, t: Tensors, version: int = 3, scaled: bool = False, multiple_of: int = 4) -> bytes:
    """What train_llama3.py's write_model writes: one header, in which 1.3 is 1 and 1e-5 is 0; the head comes last."""
    ints = header(
        20240803, version, c.n_ctx, c.n_vocab, c.n_layer, c.n_head, c.n_head_kv, c.n_embd,
        1, multiple_of, 0, int(c.theta), int(scaled), 4, 3, 1,
    )  # fmt: skip
    weights = [t["token_embd.weight"]]
    for kind in ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down"):
        weights += [layer(t, i, kind) for i in range(c.n_layer)]
    return ints + b"".join(map(WRITE[version], [*weights, t["output_norm.weight"], t["output.weight"]]))


def llama3_c(
    c: Config,
    t: Tensors,
    version: int = 3,
    scaled: bool = False,
    multiple_of: int = 4,
    old: bool = False,
    bias: float = 0,
) -> bytes:
    """What the branch with train_llama3.cu writes: two headers, GPT-2's order, biases of zeros; a tied head is absent.

    old: its header before there were tied heads. bias: what its biases are.
    """
    tail = (3, 1) if old else (int(c.tied), 3, 2 if c.tied else 1)
    sizes = (c.n_ctx, c.n_vocab, c.n_layer, c.n_head, c.n_head_kv, c.n_embd)
    ints = header(20240803, version, *sizes, multiple_of, int(scaled), *tail)
    floats = struct.pack("<3f", c.n_ff * 3 / 8 / c.n_embd, c.eps, c.theta) + b"\x7f" * (1024 - 12)
    weights = [t["token_embd.weight"], *([] if c.tied else [t["output.weight"]])]
    for kind in ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_fused", "ffn_down"):
        of_kind = [layer(t, i, kind) for i in range(c.n_layer)]
        weights += of_kind + [np.full(len(w), bias, np.float32) for w in of_kind]
    norm = t["output_norm.weight"]
    return ints + floats + b"".join(map(WRITE[version], [*weights, norm, np.full(len(norm), bias, np.float32)]))


def layer(t: Tensors, i: int, kind: str) -> np.ndarray:
    """A tensor of a layer, fused where llm.c's is."""
    parts = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_fused": ("ffn_up", "ffn_gate")}.get(kind, (kind,))
    return np.concatenate([t[f"blk.{i}.{part}.weight"] for part in parts])
