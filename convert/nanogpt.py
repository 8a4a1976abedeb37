"""nanoGPT's ckpt.pt: {'model', 'model_args', 'config', 'optimizer', ..}. Owns its keys and its arithmetic.

The file does not say which GELU it was trained with, and does not hold the vocabulary: both are found by rule.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from pygpt._lib import BadArgument, BadFormat, Unsupported

from . import vocabularies
from .checkpoint import Answer, Checkpoint, Input, Options, Question, Weights, Zeros, whole_number
from .torch_file import Tensor
from .unpickle import shown

NAME = "nanoGPT"
EPSILON = 1e-5  # of nanoGPT's LayerNorm

# name in the checkpoint, name in GGUF, shape in V (ids), T (positions), C (width), F (4 C)
EMBEDDINGS = (
    ("transformer.wte.weight", "token_embd.weight", "VC"),
    ("transformer.wpe.weight", "position_embd.weight", "TC"),
)
LAYER = (
    ("ln_1.weight", "attn_norm.weight", "C"),
    ("ln_1.bias", "attn_norm.bias", "C"),
    ("attn.c_attn.weight", "attn_qkv.weight", "3C"),  # rows: Q, K, V
    ("attn.c_attn.bias", "attn_qkv.bias", "3"),
    ("attn.c_proj.weight", "attn_output.weight", "CC"),
    ("attn.c_proj.bias", "attn_output.bias", "C"),
    ("ln_2.weight", "ffn_norm.weight", "C"),
    ("ln_2.bias", "ffn_norm.bias", "C"),
    ("mlp.c_fc.weight", "ffn_up.weight", "FC"),
    ("mlp.c_fc.bias", "ffn_up.bias", "F"),
    ("mlp.c_proj.weight", "ffn_down.weight", "CF"),
    ("mlp.c_proj.bias", "ffn_down.bias", "C"),
)
FINAL = (
    ("transformer.ln_f.weight", "output_norm.weight", "C"),
    ("transformer.ln_f.bias", "output_norm.bias", "C"),
)
HEAD = ("lm_head.weight", "output.weight", "VC")  # written only when it is not the token embedding


def recognise(source: Input) -> str | None:
    weights = source.weights
    fused, wte = weights.get("transformer.h.0.attn.c_attn.weight"), weights.get("transformer.wte.weight")
    if fused is None or wte is None or type(source.value.get("model_args")) is not dict:  # type: ignore[attr-defined]
        return None
    if len(fused.shape) != 2 or len(wte.shape) != 2 or fused.shape[0] != 3 * wte.shape[1]:
        return None
    return "model_args and transformer.h.0.attn.c_attn.weight"


def load(source: Input, options: Options) -> Checkpoint:
    value: Any = source.value
    args, config = value["model_args"], value.get("config")
    config = config if type(config) is dict else {}  # missing before 2023-01-11
    where = f"{source.path}: model_args"
    n_layer = whole_number(args, "n_layer", 1, 10_000, where)
    n_head = whole_number(args, "n_head", 1, 10_000, where)
    n_embd = whole_number(args, "n_embd", 1, 1 << 20, where)
    n_ctx = whole_number(args, "block_size", 1, 1 << 24, where)
    n_vocab = whole_number(args, "vocab_size", 1, 1 << 24, where)
    if n_embd % n_head:
        raise BadFormat(f"{where}: n_embd {n_embd} is no multiple of n_head {n_head}")
    has_bias = args.get("bias", True)  # missing before 2023-01-27
    if type(has_bias) is not bool:
        raise BadFormat(f"{where}: expected bias to be True or False, found {shown(has_bias)}")

    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": 4 * n_embd, "3": 3 * n_embd}
    tensors, untied = bind(source, n_layer, has_bias, sizes)
    options.refuse(NAME, "meta", "text", "tokenizer", "gelu")
    questions = [ask_gelu(args, config)] if options.gelu is None else []
    said = [] if options.gelu is None else [f"The GELU is {check_gelu(options.gelu)}, as the option says."]
    vocabulary = vocabularies.find(source.path, n_vocab, options, dataset_name(config))
    summary = (
        f"{n_layer} layers, {n_head} heads, {n_embd} wide, context {n_ctx}, "
        f"{'with' if has_bias else 'no'} biases, {'a head of its own' if untied else 'tied head'}"
    )
    return Checkpoint(
        source=NAME,
        recognised_by=recognise(source) or "",
        architecture="gpt2",
        keys={
            "gpt2.context_length": n_ctx,
            "gpt2.embedding_length": n_embd,
            "gpt2.feed_forward_length": 4 * n_embd,
            "gpt2.block_count": n_layer,
            "gpt2.attention.head_count": n_head,
            "gpt2.attention.layer_norm_epsilon": EPSILON,
            "gpt2.vocab_size": n_vocab,
            **(gelu_keys(options.gelu) if options.gelu else {}),
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=summary,
        questions=questions,
        assumptions=[*said, *vocabulary.assumptions],
    )


# ---- weights


def bind(source: Input, n_layer: int, has_bias: bool, sizes: dict[str, int]) -> tuple[dict[str, Weights], bool]:
    """The tensors by their GGUF names, checked; and whether the head is a matrix of its own."""
    rows = [*EMBEDDINGS]
    for i in range(n_layer):
        rows += [(f"transformer.h.{i}.{theirs}", f"blk.{i}.{ours}", shape) for theirs, ours, shape in LAYER]
    rows += FINAL
    tensors: dict[str, Weights] = {}
    n_claimed = 0
    for theirs, ours, letters in rows:
        shape = tuple(sizes[letter] for letter in letters)
        if theirs.endswith(".bias") and not has_bias:
            if theirs in source.weights:
                raise BadFormat(f"{source.path}: model_args says bias=False, but the file holds {theirs}")
            tensors[ours] = Zeros(shape)  # llama.cpp's gpt2 requires them
            continue
        tensors[ours] = tensor = find(source, theirs, shape)
        n_claimed += tensor.size
    known = {HEAD[0], *(theirs for theirs, _, _ in rows)}
    masks = (".attn.bias", ".attn.masked_bias")  # causal masks of older PyTorch
    if others := [name for name in source.weights if name not in known and not name.endswith(masks)]:
        raise Unsupported(
            f"{source.path}: expected the tensors of nanoGPT with {n_layer} layers and nothing else, found {others[0]} "
            f"and {len(others) - 1} more; a changed model would come out wrong"
        )
    untied = False
    if HEAD[0] in source.weights:
        head = find(source, HEAD[0], (sizes["V"], sizes["C"]))
        wte: Any = tensors["token_embd.weight"]
        untied = not (head.is_same_memory(wte) or same_values(head, wte))
        if untied:
            tensors[HEAD[1]] = head
            n_claimed += head.size
    n_bytes = os.path.getsize(source.path)
    if n_claimed > n_bytes:
        raise BadFormat(
            f"{source.path}: its weights are {n_claimed} numbers by their shapes, but the file has only {n_bytes} bytes"
        )
    return tensors, untied


def find(source: Input, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = source.weights.get(name)
    if tensor is None:
        raise BadFormat(
            f"{source.path}: expected a tensor {name}, found none; was the file saved whole by nanoGPT's train.py?"
        )
    if tensor.shape != shape:
        raise BadFormat(
            f"{source.path}: expected {name} to have shape {list(shape)} by model_args, found {list(tensor.shape)}"
        )
    if not tensor.is_float:
        raise BadFormat(f"{source.path}: expected {name} to hold floating-point numbers, found {tensor.storage.dtype}")
    tensor.check()
    return tensor


def same_values(a: Tensor, b: Tensor) -> bool:
    blocks: Iterator[Any] = zip_longest(a.blocks(), b.blocks())
    return all(np.array_equal(x, y) for x, y in blocks)


def gelu_keys(name: str) -> dict[str, Any]:
    return {"pygpt.activation": "gelu_" + name}


def ask_gelu(args: dict[Any, object], config: dict[Any, object]) -> Question:
    """Which GELU: nanoGPT computed tanh's until 2023-06-14."""
    names, why = ["erf", "tanh"], "as in nanoGPT since 2023-06-14"
    old = None
    if "bias" not in args:
        old = "its model_args have no bias, which they have since 2023-01-27"
    elif args["vocab_size"] == 50257 and config.get("init_from") == "scratch":
        old = "trained from scratch with 50257 ids, which are 50304 since 2023-02-04"
    if old:
        names, why = ["tanh", "erf"], f"as in nanoGPT before 2023-06-14: {old}"
    return Question("the GELU", "--gelu", [Answer(name, gelu_keys(name)) for name in names], why)


def check_gelu(name: str) -> str:
    if name not in ("erf", "tanh"):
        raise BadArgument(f"there is no GELU {name!r}: choose erf or tanh")
    return name


def dataset_name(config: dict[Any, object]) -> str | None:
    """The config's dataset, if it is the name of a folder below data/."""
    name = config.get("dataset")
    if type(name) is not str or not name or set(name) & set("\0\\:") or os.path.isabs(name) or ".." in name.split("/"):
        return None
    return name
