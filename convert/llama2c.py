"""llama2.c's ckpt.pt, and the .bin files of versions 0, 1 and 2 that its export.py writes. Owns their layouts.

    ckpt.pt    {'model', 'model_args', 'config', 'optimizer', ..}
    version 0  | 7 int32 | float32 .. |                                vocab_size below 0: a head of its own
    version 1  | magic | 1 | 7 int32 | u8 shared | zeros up to byte 256 | float32 .. |
    version 2  | magic | 2 | 7 int32 | u8 shared | int32 group_size | zeros up to byte 256 | norms | groups of int8 .. |

The 7 are INTS below. Weights are Meta's Llama: RoPE turns neighbours, which is GGUF's `llama` too. No file holds the
vocabulary. Of RoPE's base llama2.c's own files say nothing: 10000 is in its code, and so are the tables of version 0,
whatever a model was trained with. Forks store it in model_args or in such tables.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pygpt._lib import BadArgument, BadFormat, Error, NotFound, Unsupported

from . import llama2c_tokenizer, sentencepiece_tokenizer, vocabularies
from .checkpoint import Checkpoint, Input, Options, Vocabulary, Weights, whole_number
from .claims import Claims, is_same
from .hf_config import number
from .hf_llama import Sizes
from .raw_file import RawFile
from .torch_file import Tensor

NAME = "llama2.c"
EPSILON = 1e-5  # of its RMSNorm, where model_args have none
BASE = 10000.0  # of its RoPE, where the file has none
MAGIC = 0x616B3432
INTS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
HEADER = 256  # bytes, from version 1 on
LLAMA2 = 32000  # tokens of Llama 2's vocabulary

# name in the checkpoint, name in GGUF, shape in V (ids), C (width), Q (queries), K (keys), F (feed-forward)
EMBEDDING = ("tok_embeddings.weight", "token_embd.weight", "VC")
LAYER = (
    ("attention_norm.weight", "attn_norm.weight", "C"),
    ("attention.wq.weight", "attn_q.weight", "QC"),
    ("attention.wk.weight", "attn_k.weight", "KC"),
    ("attention.wv.weight", "attn_v.weight", "KC"),
    ("attention.wo.weight", "attn_output.weight", "CQ"),
    ("ffn_norm.weight", "ffn_norm.weight", "C"),
    ("feed_forward.w1.weight", "ffn_gate.weight", "FC"),
    ("feed_forward.w2.weight", "ffn_down.weight", "CF"),
    ("feed_forward.w3.weight", "ffn_up.weight", "FC"),
)
FINAL = ("norm.weight", "output_norm.weight", "C")
HEAD = ("output.weight", "output.weight", "VC")  # written only when it is not the token embedding
BUFFERS = ("attention.mask", "freqs_cos", "freqs_sin", "freqs_cis")  # follow from the settings

# what a .bin file holds, in its order; of a name of LAYER the tensors of all layers
LAYERED = {theirs for theirs, _, _ in LAYER}
NORMS = ("attention_norm.weight", "ffn_norm.weight")
ATTENTION = ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight", "attention.wo.weight")
FEED_FORWARD = ("feed_forward.w1.weight", "feed_forward.w2.weight", "feed_forward.w3.weight")
TABLES = ("freqs_cos", "freqs_sin")
OLD_ORDER = (EMBEDDING[0], NORMS[0], *ATTENTION, NORMS[1], *FEED_FORWARD, FINAL[0], *TABLES, HEAD[0])
ORDER = (*NORMS, FINAL[0], EMBEDDING[0], *ATTENTION, *FEED_FORWARD, HEAD[0])
ORDERS = {0: OLD_ORDER, 1: ORDER, 2: ORDER}  # by the version
LETTERS = {theirs: letters for theirs, _, letters in (EMBEDDING, *LAYER, FINAL, HEAD)}


def recognise(source: Input) -> str | None:
    if header := read_header(source.path):
        if header.version == 0:
            return "its size, which is that of export version 0 to the byte"
        return f"the magic number of its export version {header.version}"
    value, weights = source.value, source.weights
    if type(value) is not dict or type(value.get("model_args")) is not dict or "dim" not in value["model_args"]:
        return None
    known = "layers.0.attention.wq.weight"
    return f"model_args and {known}" if known in weights and EMBEDDING[0] in weights else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "text", "tokenizer", "rope_base")
    path, epsilon, said_base, kind = source.path, EPSILON, None, None
    if header := read_header(path):
        s, weights, said_by = header.sizes, open_bin(source, header), "its header"
        if header.version == 0:
            said_base = table_base(path, *(weights.pop(name) for name in TABLES))
    else:
        value: Any = source.value
        args, config = value["model_args"], value.get("config")
        where = f"{path}: model_args"
        s, weights, said_by = args_sizes(args, source.weights, where), source.weights, "model_args"
        epsilon = number(args, "norm_eps", 0, 1, EPSILON, where)
        if args.get("rope_theta") is not None:
            said_base = number(args, "rope_theta", 1, 1e15, None, where)
        kind = {**(config if type(config) is dict else {}), **args}.get("vocab_source")
    base, assumed = find_base(path, said_base, options)
    tensors = bind(path, weights, s, said_by)
    vocabulary, found = find_vocabulary(path, s.n_vocab, kind, options)
    return Checkpoint(
        source=NAME,
        recognised_by=recognise(source) or "",
        architecture="llama",
        keys=llama_keys(s, epsilon, base),
        tensors=tensors,
        vocabulary=vocabulary,
        summary=summary(s, base, HEAD[1] not in tensors),
        assumptions=[*assumed, *vocabulary.assumptions],
        files=found,
    )


def find_base(path: str, said: float | None, options: Options) -> tuple[float, list[str]]:
    """RoPE's base, and a sentence about it where the file does not say it."""
    named = options.constant("rope_base")
    if said is not None:
        if named is not None and not math.isclose(named, said, rel_tol=1e-3):  # tables say it in four digits
            raise BadArgument(f"--rope-base {named:.10g} contradicts {path}, which says {said:.10g}; leave it out")
        return said, []
    if named is not None:
        return named, [f"RoPE's base is {named:.10g}, as the option says."]
    return BASE, [f"RoPE's base is {BASE:.10g}, as in llama2.c's code (--rope-base if not)."]


# ---- sizes


def args_sizes(args: Mapping[Any, object], weights: Mapping[str, Tensor], where: str) -> Sizes:
    """From model_args. The width of the feed-forward is not in them: its first matrix has it."""
    w1 = weights.get("layers.0.feed_forward.w1.weight")
    found = {"hidden_dim": w1.shape[0] if w1 is not None and len(w1.shape) == 2 else 1}
    if args.get("n_kv_heads") is None:
        found["n_kv_heads"] = args.get("n_heads")
    return find_sizes({**args, **found}, where)


def find_sizes(values: Mapping[Any, object], where: str) -> Sizes:
    n_embd = whole_number(values, "dim", 1, 1 << 20, where)
    n_head = whole_number(values, "n_heads", 1, 10_000, where)
    s = Sizes(
        n_layer=whole_number(values, "n_layers", 1, 10_000, where),
        n_embd=n_embd,
        n_ff=whole_number(values, "hidden_dim", 1, 1 << 24, where),
        n_vocab=whole_number(values, "vocab_size", 1, 1 << 24, where),
        n_head=n_head,
        n_head_kv=whole_number(values, "n_kv_heads", 1, 10_000, where),
        head_dim=n_embd // n_head,
        n_ctx=whole_number(values, "max_seq_len", 1, 1 << 24, where),
    )
    check_heads(s, where)
    return s


def check_heads(s: Sizes, where: str) -> None:
    if s.n_embd % s.n_head:
        raise BadFormat(f"{where}: a width of {s.n_embd} is no multiple of {s.n_head} heads")
    if s.n_head % s.n_head_kv:
        raise BadFormat(f"{where}: {s.n_head} heads cannot share {s.n_head_kv} heads of keys and values evenly")
    if s.head_dim % 2:
        raise BadFormat(f"{where}: expected heads of an even width for RoPE, found {s.head_dim}")


def llama_keys(s: Sizes, epsilon: float, base: float) -> dict[str, Any]:
    return {
        "llama.context_length": s.n_ctx,
        "llama.embedding_length": s.n_embd,
        "llama.block_count": s.n_layer,
        "llama.feed_forward_length": s.n_ff,
        "llama.attention.head_count": s.n_head,
        "llama.attention.head_count_kv": s.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": epsilon,
        "llama.vocab_size": s.n_vocab,
        "llama.rope.dimension_count": s.head_dim,
        "llama.rope.freq_base": base,
    }


def summary(s: Sizes, base: float, is_tied: bool) -> str:
    groups = f" ({s.n_head_kv} for keys and values)" if s.n_head_kv != s.n_head else ""
    return (
        f"{s.n_layer} layers, {s.n_head} heads{groups}, {s.n_embd} wide, context {s.n_ctx}, RoPE {base:.0f}, "
        f"{'tied head' if is_tied else 'a head of its own'}"
    )


# ---- .bin files


@dataclass
class Header:
    version: int
    sizes: Sizes
    is_tied: bool
    begin: int  # where the weights begin, in bytes
    group: int = 0  # numbers that share a scale; 0: all are float32


def read_header(path: str) -> Header | None:
    """None if it is another file. Without a magic number the size must be right to the byte."""
    with open(path, "rb") as file:
        head = file.read(41)
    if head[:4] != MAGIC.to_bytes(4, "little"):
        header = old_header(path, head)
        return header if header and size_by(header) == os.path.getsize(path) else None
    if len(head) < 41:
        return None
    version, *numbers, shared, group = struct.unpack("<i7iBi", head[4:])
    if version not in (1, 2):
        raise Unsupported(f"{path}: is of llama2.c's export version {version}; known are 0, 1 and 2")
    if shared not in (0, 1):
        raise BadFormat(f"{path}: expected 0 or 1 at byte 36, is the head shared, found {shared}; it is damaged")
    sizes = find_sizes(dict(zip(INTS, numbers, strict=True)), path)
    if version == 2:
        group = whole_number({"group_size": group}, "group_size", 1, 1 << 20, path)
    return Header(version, sizes, shared == 1, HEADER, group if version == 2 else 0)


def old_header(path: str, head: bytes) -> Header | None:
    """Of version 0, whose header has no mark: any 7 numbers that can be sizes."""
    if len(head) < 28:
        return None
    *ints, n_vocab, n_ctx = struct.unpack("<7i", head[:28])
    try:
        sizes = find_sizes(dict(zip(INTS, (*ints, abs(n_vocab), n_ctx), strict=True)), path)
    except BadFormat:
        return None
    return Header(0, sizes, n_vocab > 0, 28)


def cut_short(path: str) -> str | None:
    """What to say about a file that begins like version 0 and ends too early; None about all others."""
    with open(path, "rb") as file:
        header = old_header(path, file.read(28))
    found = os.path.getsize(path)
    if header is None or found >= size_by(header):
        return None
    return (
        f"{path}: looks like llama2.c's export of version 0: expected {size_by(header)} bytes by its sizes, found "
        f"{found}; it was cut short, copy it again"
    )


def entries(header: Header) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """What comes one behind the other in a file: name, shape, and the size of the groups that it has."""
    s = header.sizes
    for name in ORDERS[header.version]:
        if name in TABLES:
            yield name, (s.n_ctx, s.head_dim // 2), 0
        elif name != HEAD[0] or not header.is_tied:
            shape = s.shape(LETTERS[name])
            yield name, shape, header.group if len(shape) > 1 else 0


def size_by(header: Header) -> int:
    """Bytes of a whole file."""
    size = header.begin
    for name, shape, group in entries(header):
        n = math.prod(shape)
        size += (n + 4 * (n // group) if group else 4 * n) * (header.sizes.n_layer if name in LAYERED else 1)
    return size


def open_bin(source: Input, header: Header) -> dict[str, Tensor]:
    """Its tensors by the names that ckpt.pt has for them."""
    expected, found = size_by(header), os.path.getsize(source.path)
    if expected != found:
        what = "it was cut short, copy it again" if expected > found else "there is more than its header says"
        raise BadFormat(f"{source.path}: expected {expected} bytes by its header, found {found}; {what}")
    file = source.stack.enter_context(RawFile(source.path))
    file.end = header.begin
    for name, shape, group in entries(header):
        if group and math.prod(shape) % group:
            raise BadFormat(f"{source.path}: {name} of shape {list(shape)} cannot be cut into groups of {group}")
        for i in range(header.sizes.n_layer if name in LAYERED else 1):
            file.place(f"layers.{i}.{name}" if name in LAYERED else name, shape, group=group)
    return file.tensors


def table_base(path: str, cos: Tensor, sin: Tensor) -> float | None:
    """RoPE's base by the tables of version 0: at position 1 pair i of n turns by base ** (-i / n).

    None: they are llama2.c's own, which it writes for models of any base; or zeros, which are as good, as run.c
    computes the turns itself today.
    """
    n_ctx, n = sin.shape
    if n_ctx < 2 or n < 2:
        return None
    found = np.concatenate((cos.rows(1, 1)[0], sin.rows(1, 1)[0]))

    def fits(base: float) -> bool:
        angle = base ** (-np.arange(n) / n)
        return np.allclose(found, np.concatenate((np.cos(angle), np.sin(angle))), rtol=0, atol=1e-4)

    if fits(BASE) or not found.any():
        return None
    angle = np.arctan2(float(found[n + 1]), float(found[1]))
    base = float(f"{angle**-n:.4g}") if 0 < angle < 1 else 1.0
    if not fits(base):
        raise Unsupported(f"{path}: its table of RoPE's turns is that of no base; a changed model would come out wrong")
    return base


# ---- weights


def bind(path: str, weights: Mapping[str, Tensor], s: Sizes, said_by: str) -> dict[str, Weights]:
    """The tensors by their GGUF names, checked; the head only if it is a matrix of its own."""
    claims = Claims(path, weights, NAME, said_by)
    letters = {letter: s.shape(letter)[0] for letter in "VCQKF"}
    tensors: dict[str, Any] = claims.take_rows([EMBEDDING], letters)
    for i in range(s.n_layer):
        tensors |= claims.take_rows(LAYER, letters, f"layers.{i}.", f"blk.{i}.")
    tensors |= claims.take_rows([FINAL], letters)
    if HEAD[0] in weights:
        head = claims.take_rows([HEAD], letters)
        if not is_same(head[HEAD[1]], tensors[EMBEDDING[1]]):
            tensors |= head
    claims.finish(BUFFERS)
    return tensors


# ---- vocabulary


def find_vocabulary(path: str, n_vocab: int, kind: object, options: Options) -> tuple[Vocabulary, list[str]]:
    """What the user named; else the nearest tokenizer of as many tokens, beside the checkpoint or above it. Also the
    file that it was found in.

    kind: "llama2" or "custom", as the config's vocab_source says; None in .bin files.
    """
    if options.tokenizer is not None:
        return llama2c_tokenizer.as_run_c(vocabularies.named(options.tokenizer, n_vocab)), []
    misfit: Error | None = None
    names = tokenizer_names(n_vocab, kind)
    for found in (found for same in names for found in nearest_first(path, same)):
        read = llama2c_tokenizer.from_bin if found.endswith(".bin") else sentencepiece_tokenizer.from_model_of_size
        try:
            vocabulary = read(found, n_vocab)
        except BadFormat as error:  # Llama 2's lies above many a model
            misfit = misfit or error
            continue
        if kind is None:
            why = f"The vocabulary is that of {found}: as many tokens, and the nearest of its name."
            vocabulary.assumptions.append(why)
        return llama2c_tokenizer.as_run_c(vocabulary), [found]
    raise misfit or NotFound(
        f"{path}: expected the vocabulary of its {n_vocab} ids, found no {names[0][0]} and the like beside it or "
        "above; name it with --tokenizer tokenizer.bin"
    )


def nearest_first(path: str, names: Sequence[str]) -> Iterator[str]:
    """The files of these names: in the folder of `path`, the one above it, and so on to the root."""
    folder = os.path.abspath(path)
    while folder != (folder := os.path.dirname(folder)):
        yield from filter(os.path.isfile, (os.path.join(folder, name) for name in names))


def tokenizer_names(n_vocab: int, kind: object) -> list[list[str]]:
    """What llama2.c calls its tokenizers: the names that say their size, and the one that does not.

    tokenizer.model in its folder is Llama 2's, and no custom one.
    """
    groups = []
    if kind != "llama2":
        groups.append([os.path.join("data", f"tok{n_vocab}"), f"tok{n_vocab}"])
    if kind != "custom" or n_vocab != LLAMA2:
        groups.append(["tokenizer"])
    return [[stem + end for stem in stems for end in (".model", ".bin")] for stems in groups]
