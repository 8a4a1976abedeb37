"""nanoGPT's ckpt.pt: {'model', 'model_args', 'config', 'optimizer', ..}. Owns its keys, and what they tell of it.

The file does not say which GELU it was trained with, and does not hold the vocabulary: both are found by rule. Its
layers are GPT-2's.
"""

from __future__ import annotations

import os
from typing import Any

from pygpt._lib import BadFormat

from . import gpt2_layers, vocabularies
from .checkpoint import Checkpoint, Input, Options, Weights, whole_number
from .claims import Claims
from .gpt2_layers import FUSED, Weighed
from .open_questions import HEAD_COUNT, Found, ask_gelu, find_gelu
from .unpickle import shown

NAME = "nanoGPT"
MASKS = (".attn.bias", ".attn.masked_bias")  # causal masks of older PyTorch


def recognise(source: Input) -> str | None:
    fused, wte = (source.weights.get(name) for name in (FUSED, "transformer.wte.weight"))
    if fused is None or wte is None or not has_model_args(source.value):
        return None
    if len(fused.shape) != 2 or len(wte.shape) != 2 or fused.shape[0] != 3 * wte.shape[1]:
        return None
    return f"model_args and {FUSED}"


def has_model_args(value: object) -> bool:
    return type(value) is dict and type(value.get("model_args")) is dict


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

    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": 4 * n_embd}
    model = Weighed(n_layer, sizes, bind(source, n_layer, sizes, has_bias))
    options.refuse(NAME, "meta", "text", "tokenizer", "gelu")
    gelu = find_gelu(source, options) or ask_which_gelu(args, config)
    vocabulary = vocabularies.find(source.path, n_vocab, options, dataset_name(config))
    biases = "with biases" if has_bias else "no biases"
    checkpoint = gpt2_layers.gpt2(model, Found({HEAD_COUNT: n_head}), gelu, vocabulary, biases)
    checkpoint.source, checkpoint.recognised_by = NAME, recognise(source) or ""
    checkpoint.assumptions += gpt2_layers.other_settings(args, NAME)
    return checkpoint


def bind(source: Input, n_layer: int, sizes: dict[str, int], has_bias: bool) -> dict[str, Weights]:
    """The tensors by their GGUF names, checked."""
    names = (name for name, _, _ in gpt2_layers.rows(n_layer) if name.endswith(".bias") and name in source.weights)
    if not has_bias and (name := next(names, None)):
        raise BadFormat(f"{source.path}: model_args says bias=False, but the file holds {name}")
    learned = {name: tensor for name, tensor in source.weights.items() if not name.endswith(MASKS)}
    claims = Claims(source.path, learned, f"{NAME} with {n_layer} layers", "model_args")
    return gpt2_layers.bind(claims, n_layer, sizes, has_bias)


def ask_which_gelu(args: dict[Any, object], config: dict[Any, object]) -> Found:
    """nanoGPT computed tanh's until 2023-06-14."""
    old = None
    if "bias" not in args:
        old = "its model_args have no bias, which they have since 2023-01-27"
    elif args["vocab_size"] == 50257 and config.get("init_from") == "scratch":
        old = "trained from scratch with 50257 ids, which are 50304 since 2023-02-04"
    if old:
        return ask_gelu(("tanh", "erf"), f"as in nanoGPT before 2023-06-14: {old}")
    return ask_gelu(("erf", "tanh"), "as in nanoGPT since 2023-06-14")


def dataset_name(config: dict[Any, object]) -> str | None:
    """The config's dataset, if it is the name of a folder below data/."""
    name = config.get("dataset")
    if type(name) is not str or not name or set(name) & set("\0\\:") or os.path.isabs(name) or ".." in name.split("/"):
        return None
    return name
