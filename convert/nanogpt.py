"""nanoGPT's ckpt.pt: {'model', 'model_args', 'config', 'optimizer', ..}. Owns its keys and its arithmetic.

The file does not say which GELU it was trained with, and does not hold the vocabulary: both are found by rule.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from pygpt._lib import BadArgument, BadFormat, NotFound, Unsupported

from . import characters, gpt2_bpe
from .checkpoint import Checkpoint, Input, Options, Vocabulary, Weights, Zeros, find_above, whole_number
from .torch_file import Tensor
from .unpickle import shown

NAME = "nanoGPT"
EPSILON = 1e-5  # of nanoGPT's LayerNorm
BPE_SIZES = (50257, 50304)  # GPT-2's ids, and rounded up to a multiple of 64

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
    gelu, why = choose_gelu(options.gelu, args, config)
    vocabulary = find_vocabulary(source.path, n_vocab, config, options)
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
            "pygpt.activation": "gelu_" + gelu,
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=summary,
        assumptions=[why, *vocabulary.assumptions],
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


def choose_gelu(option: str | None, args: dict[Any, object], config: dict[Any, object]) -> tuple[str, str]:
    """Which GELU, and the sentence about how that is known. nanoGPT computed tanh's until 2023-06-14."""
    if option is not None:
        if option not in ("erf", "tanh"):
            raise BadArgument(f"there is no GELU {option!r}: choose erf or tanh")
        return option, f"GELU is {option}, as the option says."
    old = None
    if "bias" not in args:
        old = "its model_args have no bias, which they have since 2023-01-27"
    elif args["vocab_size"] == 50257 and config.get("init_from") == "scratch":
        old = "trained from scratch with 50257 ids, which are 50304 since 2023-02-04"
    if old:
        return "tanh", f"GELU is tanh, as in nanoGPT before 2023-06-14: {old} (--gelu erf if it was not)."
    return "erf", "GELU is exact (erf), as in nanoGPT since 2023-06-14 (--gelu tanh if the training was earlier)."


# ---- vocabulary


def find_vocabulary(path: str, n_vocab: int, config: dict[Any, object], options: Options) -> Vocabulary:
    """What the user named; else a meta.pkl beside the checkpoint or where nanoGPT keeps it; else GPT-2's."""
    if options.meta is not None and options.text is not None:
        raise BadArgument("--meta and --text both name the vocabulary: give one of them")
    if options.meta is not None:
        return characters.from_meta(options.meta, n_vocab)
    if options.text is not None:
        return characters.from_text(options.text, n_vocab)
    dataset = dataset_name(config)
    usual = os.path.join("data", dataset, "meta.pkl") if dataset else None
    beside = os.path.join(os.path.dirname(path), "meta.pkl")
    if os.path.isfile(beside):
        return characters.from_meta(beside, n_vocab)
    if usual and (found := find_above(path, usual)):
        return characters.from_meta(found, n_vocab)
    if usual and os.path.isfile(usual):  # where nanoGPT's sample.py looks
        return characters.from_meta(usual, n_vocab)
    if n_vocab in BPE_SIZES:
        n_padding = n_vocab - gpt2_bpe.N_TOKENS
        text = f"GPT-2's BPE, {gpt2_bpe.N_TOKENS} tokens" + (f" and {n_padding} ids of padding" if n_padding else "")
        why = f"The vocabulary is GPT-2's BPE: the model has {n_vocab} ids, and there is no meta.pkl."
        return Vocabulary(gpt2_bpe.vocabulary_keys(n_vocab), text, [why])
    looked = (
        f"no {usual} in the folders above it" if usual else "its config names no dataset, and no meta.pkl lies beside"
    )
    raise NotFound(
        f"{path}: expected the vocabulary of its {n_vocab} ids, found {looked}; "
        "name it with --meta meta.pkl, or the training text with --text input.txt"
    )


def dataset_name(config: dict[Any, object]) -> str | None:
    """The config's dataset, if it is the name of a folder below data/."""
    name = config.get("dataset")
    if type(name) is not str or not name or set(name) & set("\0\\:") or os.path.isabs(name) or ".." in name.split("/"):
        return None
    return name
