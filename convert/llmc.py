"""llm.c's .bin files, GPT-2 and Llama 3, in float32 (version 3) or bfloat16 (version 5). Owns their headers and orders.

    GPT-2    | 256 int32 | weights |                 rows of the embedding are padded to a multiple of 128
    Llama 3  | 256 int32 | weights |                 train_llama3.py: 1.3 and 1e-5 became int32, too
             | 256 int32 | 256 float32 | weights |   the branch that trains it in C

Each header begins with a magic number and the version. Weights lie kind by kind, each for all layers. None has a name:
the tables have those of llm.c's code. Llama 3's RoPE turns neighbours, as GGUF's `llama` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from pygpt._lib import BadFormat, NotFound, Unsupported

from . import vocabularies
from .checkpoint import Checkpoint, Input, Options, Rows, Values, Vocabulary, Weights, find_above, whole_number
from .hf_config import llama3_factors, number
from .hf_llama import Sizes
from .llama2c import check_heads, llama_keys, summary
from .raw_file import RawFile
from .torch_file import Tensor

NAME = "llm.c"
GPT2, LLAMA3 = 20240326, 20240803  # magic numbers
VERSIONS = {3: ("float32", 4), 5: ("bfloat16", 2)}  # what weights are stored as, and its bytes
N_HEADER = 256  # numbers
EPSILON = 1e-5  # of LayerNorm; and of RMSNorm where int32 has made 0 of it
LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # use_scaled_rope
LLAMA31_CONTEXT = 8192  # before RoPE was scaled
MODEL = re.compile(r"model_([0-9]{8})\.bin")  # of a step; behind it an empty file is written as a mark
MARK = "DONE_"  # and the step

# llm.c's name, name in GGUF, shape; in the order of the file. A {} stands for each layer
# P (rows of the embedding), T (positions), C (width), 3 (3 C), F (4 C)
GPT2_ORDER = (
    ("wte", "token_embd.weight", "PC"),
    ("wpe", "position_embd.weight", "TC"),
    ("ln1w", "blk.{}.attn_norm.weight", "C"),
    ("ln1b", "blk.{}.attn_norm.bias", "C"),
    ("qkvw", "blk.{}.attn_qkv.weight", "3C"),
    ("qkvb", "blk.{}.attn_qkv.bias", "3"),
    ("attprojw", "blk.{}.attn_output.weight", "CC"),
    ("attprojb", "blk.{}.attn_output.bias", "C"),
    ("ln2w", "blk.{}.ffn_norm.weight", "C"),
    ("ln2b", "blk.{}.ffn_norm.bias", "C"),
    ("fcw", "blk.{}.ffn_up.weight", "FC"),
    ("fcb", "blk.{}.ffn_up.bias", "F"),
    ("fcprojw", "blk.{}.ffn_down.weight", "CF"),
    ("fcprojb", "blk.{}.ffn_down.bias", "C"),
    ("lnfw", "output_norm.weight", "C"),
    ("lnfb", "output_norm.bias", "C"),
)
# V (ids), C (width), A (queries, keys and values), F (feed-forward), G (2 F)
LLAMA3_ORDER = (  # of train_llama3.py
    ("wte", "token_embd.weight", "VC"),
    ("ln_1", "blk.{}.attn_norm.weight", "C"),
    ("attn.c_attn", "blk.{}.qkv", "AC"),
    ("attn.c_proj", "blk.{}.attn_output.weight", "CC"),
    ("ln_2", "blk.{}.ffn_norm.weight", "C"),
    ("mlp.c_fc", "blk.{}.ffn_up.weight", "FC"),
    ("mlp.c_fc2", "blk.{}.ffn_gate.weight", "FC"),
    ("mlp.c_proj", "blk.{}.ffn_down.weight", "CF"),
    ("ln_f", "output_norm.weight", "C"),
    ("lm_head", "output.weight", "VC"),
)
LLAMA3_C_ORDER = (  # of the branch: GPT-2's places, the biases zeros that are never added
    ("wte", "token_embd.weight", "VC"),
    ("wlmhead", "output.weight", "VC"),
    ("ln1w", "blk.{}.attn_norm.weight", "C"),
    ("ln1b", "blk.{}.zeros", "C"),
    ("qkvw", "blk.{}.qkv", "AC"),
    ("qkvb", "blk.{}.zeros", "A"),
    ("attprojw", "blk.{}.attn_output.weight", "CC"),
    ("attprojb", "blk.{}.zeros", "C"),
    ("ln2w", "blk.{}.ffn_norm.weight", "C"),
    ("ln2b", "blk.{}.zeros", "C"),
    ("fcw", "blk.{}.up_gate", "GC"),
    ("fcb", "blk.{}.zeros", "G"),
    ("fcprojw", "blk.{}.ffn_down.weight", "CF"),
    ("fcprojb", "blk.{}.zeros", "C"),
    ("lnfw", "output_norm.weight", "C"),
    ("lnfb", "zeros", "C"),
)
PARTS = {  # matrices that are several in GGUF, with their rows
    "qkv": (("attn_q.weight", "Q"), ("attn_k.weight", "K"), ("attn_v.weight", "K")),
    "up_gate": (("ffn_up.weight", "F"), ("ffn_gate.weight", "F")),
}
Order = tuple[tuple[str, str, str], ...]
LLAMA3_C_TIED_ORDER = tuple(row for row in LLAMA3_C_ORDER if row[0] != "wlmhead")


def recognise(source: Input) -> str | None:
    with open(source.path, "rb") as file:
        magic = int.from_bytes(file.read(4), "little")
    return f"llm.c's magic number {magic}" if magic in (GPT2, LLAMA3) else None


def load(source: Input, options: Options) -> Checkpoint:
    path = source.path
    if os.path.getsize(path) < 4 * N_HEADER:
        raise BadFormat(
            f"{path}: expected a header of {4 * N_HEADER} bytes, found {os.path.getsize(path)}; {cut(path)}"
        )
    file = source.stack.enter_context(RawFile(path))
    ints = file.numbers("<i4", N_HEADER)
    if ints[1] not in VERSIONS:
        raise Unsupported(
            f"{path}: is of llm.c's version {ints[1]}; known are 3 (float32) and 5 (bfloat16): export it again"
        )
    convert = gpt2 if ints[0] == GPT2 else llama3
    checkpoint = convert(file, ints, options)
    checkpoint.recognised_by = recognise(source) or ""
    return checkpoint


# ---- GPT-2


def gpt2(file: RawFile, ints: list[int], options: Options) -> Checkpoint:
    options.refuse(NAME, "meta", "text", "tokenizer")
    path = file.path
    names = ("maxT", "V", "L", "NH", "C", "Vp")
    header = dict(zip(names, ints[2:], strict=False))
    n_ctx = whole_number(header, "maxT", 1, 1 << 24, path)
    n_vocab = whole_number(header, "V", 1, 1 << 24, path)
    n_layer = whole_number(header, "L", 1, 10_000, path)
    n_head = whole_number(header, "NH", 1, 10_000, path)
    n_embd = whole_number(header, "C", 1, 1 << 20, path)
    n_rows = whole_number(header, "Vp", n_vocab, 1 << 24, path)
    if n_embd % n_head:
        raise BadFormat(f"{path}: a width of {n_embd} is no multiple of {n_head} heads")
    sizes = {"P": n_rows, "T": n_ctx, "C": n_embd, "F": 4 * n_embd, "3": 3 * n_embd}
    expected = file.end + count(GPT2_ORDER, sizes, n_layer) * VERSIONS[ints[1]][1]
    if expected != file.bytes:
        what = cut(path) if file.bytes < expected else "there is more than its header says"
        raise BadFormat(f"{path}: expected {expected} bytes by its header, found {file.bytes}; {what}")
    tensors: dict[str, Any] = dict(place(file, GPT2_ORDER, sizes, n_layer, VERSIONS[ints[1]][0]))
    if n_rows > n_vocab:
        tensors["token_embd.weight"] = Rows(tensors["token_embd.weight"], 0, n_vocab)
    vocabulary = vocabularies.find(path, n_vocab, options)
    return Checkpoint(
        source=NAME,
        recognised_by="",
        architecture="gpt2",
        keys={
            "gpt2.context_length": n_ctx,
            "gpt2.embedding_length": n_embd,
            "gpt2.feed_forward_length": 4 * n_embd,
            "gpt2.block_count": n_layer,
            "gpt2.attention.head_count": n_head,
            "gpt2.attention.layer_norm_epsilon": EPSILON,
            "gpt2.vocab_size": n_vocab,
            "pygpt.activation": "gelu_tanh",
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"{n_layer} layers, {n_head} heads, {n_embd} wide, context {n_ctx}, with biases, tied head",
        assumptions=[*vocabulary.assumptions],
    )


# ---- Llama 3


@dataclass
class Llama3:
    """What its header says beside the sizes."""

    multiple_of: int  # of which the feed-forward's width is one
    n_ff: float  # about that width, if the header says it
    is_scaled: bool  # RoPE as in Llama 3.1
    epsilon: float
    base: float
    orders: list[Order]  # that the weights may lie in


def llama3(file: RawFile, ints: list[int], options: Options) -> Checkpoint:
    options.refuse(NAME, "text", "tokenizer")
    path, (dtype, itemsize) = file.path, VERSIONS[ints[1]]
    s = read_sizes(ints, path)
    header = read_header(file, ints, s.n_embd)
    order, s.n_ff = find_order(header, s, divmod(file.bytes - file.end, itemsize), path)
    tensors: dict[str, Weights] = {}
    if header.is_scaled:
        tensors["rope_freqs.weight"] = Values(llama3_factors(LLAMA31, header.base, s.head_dim, LLAMA31_CONTEXT, path))
    sizes = letters(s)
    for name, tensor in place(file, order, sizes, s.n_layer, dtype):
        tensors |= in_parts(name, tensor, sizes, path)
    vocabulary, found = find_vocabulary(path, s.n_vocab, options)
    scaled = ", RoPE scaled as Llama 3.1's" if header.is_scaled else ""
    return Checkpoint(
        source=NAME,
        recognised_by="",
        architecture="llama",
        keys=llama_keys(s, header.epsilon, header.base),
        tensors=tensors,
        vocabulary=vocabulary,
        summary=summary(s, header.base, "output.weight" not in tensors) + scaled,
        assumptions=[*vocabulary.assumptions],
        files=found,
    )


def read_sizes(ints: list[int], path: str) -> Sizes:
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    header = dict(zip(names, ints[2:], strict=False))
    n_embd, n_head = (whole_number(header, name, 1, 1 << 20, path) for name in ("n_embd", "n_head"))
    s = Sizes(
        n_layer=whole_number(header, "n_layer", 1, 10_000, path),
        n_embd=n_embd,
        n_ff=0,  # follows from the file's size
        n_vocab=whole_number(header, "vocab_size", 1, 1 << 24, path),
        n_head=n_head,
        n_head_kv=whole_number(header, "n_kv_head", 1, 10_000, path),
        head_dim=n_embd // n_head,
        n_ctx=whole_number(header, "block_size", 1, 1 << 24, path),
    )
    check_heads(s, path)
    return s


def read_header(file: RawFile, ints: list[int], n_embd: int) -> Llama3:
    """Of both kinds. Where the first has the number of Llama's version, as in 3.1, the second has 0."""
    path = file.path
    if ints[14]:
        if ints[10] != 0:
            raise BadFormat(f"{path}: expected norm_eps to be 0, which 1e-5 is as int32, found {ints[10]}")
        header = {"multiple_of": ints[9], "use_scaled_rope": ints[12], "rope_theta": ints[11]}
        epsilon, multiplier, orders = EPSILON, 0.0, [LLAMA3_ORDER]
    else:
        floats = dict(
            zip(("ffn_dim_multiplier", "norm_eps", "rope_theta"), file.numbers("<f4", N_HEADER), strict=False)
        )
        header = {"multiple_of": ints[8], "use_scaled_rope": ints[9], "rope_theta": floats["rope_theta"]}
        multiplier = number(floats, "ffn_dim_multiplier", 0, 1e6, None, path)
        epsilon = number(floats, "norm_eps", 0, 1, None, path)
        is_tied = ints[10] == 1
        orders = [LLAMA3_C_TIED_ORDER] if is_tied else [LLAMA3_C_ORDER, LLAMA3_ORDER]
    return Llama3(
        multiple_of=whole_number(header, "multiple_of", 1, 1 << 24, path),
        n_ff=multiplier * n_embd * 8 / 3,
        is_scaled=whole_number(header, "use_scaled_rope", 0, 1, path) == 1,
        epsilon=epsilon,
        base=number(header, "rope_theta", 1, 1e15, None, path),
        orders=orders,
    )


def find_order(header: Llama3, s: Sizes, numbers: tuple[int, int], path: str) -> tuple[Order, int]:
    """The order of the weights, and the width of the feed-forward: that of which a file has so many numbers.

    numbers: how many, and bytes that are left.
    """
    fits: list[tuple[Order, int]] = []
    n, rest = numbers
    for order in header.orders:
        without, with_one = (count(order, letters(replace(s, n_ff=n_ff)), s.n_layer) for n_ff in (0, 1))
        n_ff, over = divmod(n - without, with_one - without)
        if n_ff > 0 and not over and not rest and n_ff % header.multiple_of == 0:
            fits.append((order, n_ff))
    if not fits:
        raise BadFormat(
            f"{path}: expected weights up to its end, for a feed-forward whose width is a multiple of "
            f"{header.multiple_of}, found {os.path.getsize(path)} bytes, which none has; {cut(path)}"
        )
    return min(fits, key=lambda fit: abs(fit[1] - header.n_ff))


def in_parts(name: str, whole: Tensor, sizes: Mapping[str, int], path: str) -> dict[str, Weights]:
    """A tensor by its GGUF name, or the several that it is in GGUF, or none."""
    layer, _, kind = name.rpartition(".")
    if kind == "zeros":
        if whole.array().any():
            raise Unsupported(
                f"{path}: expected {whole.name} to be zeros, which llm.c's Llama 3 never adds, found others"
            )
        return {}
    if kind not in PARTS:
        return {name: whole}
    parts: dict[str, Weights] = {}
    begin = 0
    for part, letter in PARTS[kind]:
        parts[f"{layer}.{part}"] = Rows(whole, begin, begin + sizes[letter])
        begin += sizes[letter]
    return parts


def letters(s: Sizes) -> dict[str, int]:
    """Sizes by the letters of the tables."""
    q, k = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    return {"V": s.n_vocab, "C": s.n_embd, "Q": q, "K": k, "A": q + 2 * k, "F": s.n_ff, "G": 2 * s.n_ff}


def find_vocabulary(path: str, n_vocab: int, options: Options) -> tuple[Vocabulary, list[str]]:
    """Llama 3's, and the file that it was found in. A text ends where the next begins, with BOS."""
    found = None if options.tokenizer else find_above(path, "tokenizer.model")
    name = options.tokenizer or found
    if name is None:
        raise NotFound(
            f"{path}: expected the vocabulary of its {n_vocab} ids, found no tokenizer.model beside it or above; "
            "name Llama 3's with --tokenizer tokenizer.model"
        )
    vocabulary = vocabularies.named(name, n_vocab)
    bos = vocabulary.keys.get("tokenizer.ggml.bos_token_id")
    if bos is not None:
        vocabulary.keys["tokenizer.ggml.eot_token_id"] = bos
    return vocabulary, [found] if found else []


# ---- what both share


def newest(folder: str) -> str | None:
    """The model of the highest step that is marked as whole, as llm.c takes it up again; if none is, of the highest."""
    try:
        names = {*os.listdir(folder)}
    except OSError:
        return None
    steps = [found[1] for name in names if (found := MODEL.fullmatch(name))]
    whole = [step for step in steps if MARK + step in names]
    return os.path.join(folder, f"model_{max(whole or steps)}.bin") if steps else None


def count(order: Order, sizes: Mapping[str, int], n_layer: int) -> int:
    """Numbers in a file of this order."""
    return sum(prod(sizes[letter] for letter in shape) * (n_layer if "{}" in ours else 1) for _, ours, shape in order)


def place(
    file: RawFile, order: Order, sizes: Mapping[str, int], n_layer: int, dtype: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file with their names in the tables."""
    for theirs, ours, shape in order:
        for i in range(n_layer if "{}" in ours else 1):
            name = f"{theirs} of layer {i}" if "{}" in ours else theirs
            yield ours.format(i), file.place(name, tuple(sizes[letter] for letter in shape), dtype)


def cut(path: str) -> str:
    """What to say about a file that ends too early."""
    step = MODEL.fullmatch(os.path.basename(path))
    mark = MARK + step[1] if step else ""
    if mark and not os.path.exists(os.path.join(os.path.dirname(path), mark)):
        return f"no {mark} lies beside it either: it was not written to its end, take another checkpoint"
    return "it was cut short, copy it again"
