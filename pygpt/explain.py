"""What a model is and what it costs: its forward pass line by line, beside the tensors that each line reads.

Owns the formulas of the architectures, the names that their authors gave to the parts, and the counting. Numbers come
from the file; only the last section measures, and it measures the machine. A new architecture is a row in FORMULAS,
NORMS, WORDS and CONSTANTS; without one its tensors are listed and counted all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from math import isclose, prod, sqrt
from textwrap import wrap
from typing import Any, NamedTuple

from pygpt import _lib
from pygpt.model import IdModel

WIDTH = 100  # columns of a line
FLOATS = ("f32", "f16", "bf16")
PARTS = ("embeddings", "attention", "feed-forward", "head", "norms and biases", "other")
SHOWN = 24  # keys or sentences of a file that has very many
TILE = 16  # the cache keeps positions, and the values of a head, in multiples of it


def explain(model: IdModel, measured: bool = True) -> str:
    """The model as a text for people. measured: with what this machine can do, which takes half a second."""
    a = Anatomy(model)
    sections = [headline(a), forward_pass(a), where_the_bytes_are(a), cost(a), constants(a)]
    if measured:
        sections.append(speed(a))
    return "\n\n".join("\n".join(line.rstrip() for line in section) for section in sections) + "\n"


# ---- what the file holds ---------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A tensor. stem: its name without "blk.<layer>." and ".weight"; is_zeros: a bias that the model does not have."""

    stem: str
    layer: int | None
    shape: tuple[int, ...]
    type: str
    bytes: int
    is_zeros: bool

    @property
    def size(self) -> int:
        return 0 if self.is_zeros else prod(self.shape)

    @property
    def part(self) -> str:
        if self.stem.endswith("_embd"):
            return "embeddings"
        if self.stem.endswith((".bias", "_norm")):
            return "norms and biases"
        prefixes = {"attn_": "attention", "ffn_": "feed-forward", "output": "head"}
        return next((part for prefix, part in prefixes.items() if self.stem.startswith(prefix)), "other")


class Anatomy:
    """A model's tensors, keys and sizes. `lines`: its forward pass in the words of its author."""

    def __init__(self, model: IdModel) -> None:
        self.info, file = model.info, model.file()
        self.arch, self.keys, self.file_bytes = self.info.architecture, file.keys, file.bytes
        self.pieces = [piece(file, tensor) for tensor in file.tensors.values()]
        self.is_tied = self.arch != "bigram" and not any(p.stem == "output" for p in self.pieces)
        self.n_layer = len({p.layer for p in self.pieces} - {None})

    def key(self, name: str, default: Any = None) -> Any:
        """The value of one of the architecture's constants. Others are nothing to it, and may be anything."""
        known = any(constant.key == name for constant in CONSTANTS.get(self.arch, ()))
        full = full_name(self.arch, name)
        return self.keys[full] if known and full in self.keys else default

    @cached_property
    def source(self) -> str:
        value = self.keys.get("pygpt.source")
        return value if isinstance(value, str) else ""

    # ---- sizes

    @property
    def has_attention(self) -> bool:
        return any(p.part == "attention" for p in self.pieces)

    @property
    def head_dim(self) -> int:
        return self.key("attention.key_length", self.info.n_embd // max(self.info.n_head, 1))

    @property
    def scale(self) -> float:
        """What a query's product with a key is multiplied by."""
        return self.key("attention.scale", 1 / sqrt(max(self.head_dim, 1)))

    @property
    def epsilon(self) -> float:
        return self.key("attention.layer_norm_epsilon", self.key("attention.layer_norm_rms_epsilon", 0.0))

    @property
    def windows(self) -> list[int]:
        """How many positions a token sees at most, itself included, layer by layer; 0: all."""
        value = self.key("attention.sliding_window", 0)
        return value if isinstance(value, list) else [value] * self.n_layer

    # ---- counting

    def count(self, amount: Callable[[Piece], int], part: str) -> int:
        return sum(amount(p) for p in self.pieces if p.part == part)

    def products(self, part: str) -> int:
        """out x in of the matrices of a part that every token passes."""
        if part == "embeddings":  # of which a token takes a row
            return 0
        tied = sum(p.size for p in self.pieces if p.stem == "token_embd") if part == "head" and self.is_tied else 0
        return tied + self.count(lambda p: p.size if len(p.shape) == 2 else 0, part)

    def attention_products(self, position: int) -> int:
        """Those of a token with the keys and values of the positions up to its own, counted from 1."""
        if not self.has_attention:
            return 0
        seen = sum(min(position, window or position) for window in self.windows)
        return 2 * self.info.n_head * self.head_dim * seen

    def int8_products(self, parts: Iterable[str]) -> int:
        """Those of parts with quantized weights. Floats are multiplied as floats."""
        quantized = [p for p in self.pieces if len(p.shape) == 2 and p.type not in FLOATS]
        tied = [p.size for p in quantized if p.stem == "token_embd" and self.is_tied and "head" in parts]
        return sum(p.size for p in quantized if p.part in parts and p.part != "embeddings") + sum(tied)

    def flops(self, position: int) -> int:
        return 2 * (sum(map(self.products, PARTS)) + self.attention_products(position))

    @property
    def cache_number(self) -> str:
        """The type of cached keys and values: f16 where a matrix is quantized."""
        return "f16" if any(len(p.shape) == 2 and p.type not in FLOATS for p in self.pieces) else "f32"

    def cache_bytes(self, positions: int) -> int:
        """Of one sequence: keys lie in tiles of 16 positions, rows of values are padded to 16 numbers."""
        if not self.has_attention:
            return 0
        keys, values = rounded(positions) * self.head_dim, positions * rounded(self.head_dim)
        return self.n_layer * self.info.n_head_kv * (keys + values) * (2 if self.cache_number == "f16" else 4)

    @property
    def cache_per_token(self) -> int:
        return self.cache_bytes(TILE) // TILE

    # ---- words

    @cached_property
    def words(self) -> Mapping[str, str]:
        """What the author calls the parts, and the file's constants as formulas show them."""
        dialects = WORDS.get(self.arch, {})
        own = next((words for source, words in dialects.items() if source and self.source.startswith(source)), None)
        fixed = {
            "activation": clean(self.key("pygpt.activation", self.key("activation", "gelu_tanh")), 20),
            "scaled": scaled(self.scale),
            "qk_scale": times(self.key("attention.qk_scale", 1.0)),
            "gate_scale": times(self.key("value_gate_scale", 0.0)),
            "softcap": number(self.key("final_logit_softcapping", 0.0)),
            "backout_layer": number(self.key("backout_layer", 0)),
            "gate_width": self.width("attn_value_gate"),
            "smear_width": self.width("smear_gate"),
        }
        return Words(fixed | (own or dialects.get("", {})))

    def width(self, stem: str) -> str:
        return next((str(p.shape[-1]) for p in self.pieces if p.stem == stem), "")

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of the forward pass that this model has, with their words filled in."""
        stems = {p.stem for p in self.pieces} | {"blk"}
        rows = FORMULAS.get(self.arch, ())
        if self.is_tied:
            stems.add("output")
        present = (r for r in rows if (r.needs(self) if r.needs else not r.reads or stems.intersection(r.reads)))
        return [row._replace(text=row.text.format_map(self.words)) for row in present]


def full_name(arch: str, key: str) -> str:
    return key if key.startswith("pygpt.") else f"{arch}.{key}"


class Words(dict):
    """A part that has no other name is called as in the file."""

    def __missing__(self, stem: str) -> str:
        return f"{self['attn_qkv']}(y)" if stem == "qkv" else stem


def piece(file: _lib.File, tensor: _lib.TensorInfo) -> Piece:
    layer, stem = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)", tensor.name, re.DOTALL).groups()  # type: ignore[union-attr]
    is_zeros = stem.endswith(".bias") and not file.data(tensor.name).any()
    stem = clean(stem.removesuffix(".weight"), 40)
    return Piece(stem, None if layer is None else int(layer), tensor.shape, tensor.type, tensor.bytes, is_zeros)


def rounded(n: int) -> int:
    return -(-n // TILE) * TILE


# ---- the forward pass of each architecture ---------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the forward pass. Names in braces are words of the author. A line is there if `needs` says so, or else
    if the file has one of the tensors that it reads. notes: what stands beside it, if it reads nothing."""

    text: str
    reads: tuple[str, ...] = ()
    notes: Callable[[Anatomy], list[str]] | None = None
    needs: Callable[[Anatomy], bool] | None = None


def heads(a: Anatomy) -> list[str]:
    """What stands beside the line with the softmax."""
    i = a.info
    shared = f"k and v have {i.n_head_kv}, each for {i.n_head // i.n_head_kv} of them"
    lines = [f"{i.n_head} heads of {a.head_dim}; {shared if i.n_head > i.n_head_kv else 'side by side'}"]
    limited = {window: a.windows.count(window) for window in a.windows if 0 < window < i.n_ctx}
    if not limited:
        return [*lines, "a token sees itself and all before it"]
    for window, n in limited.items():
        who = f"in {n} of {a.n_layer} layers it" if n < a.n_layer else "a token"
        lines.append(f"{who} sees itself and {window - 1:,} before")
    if sum(limited.values()) < a.n_layer:
        lines.append("in the others itself and all before it")
    return lines


EMBED = Line("x = {token_embd}[id]", ("token_embd",))
LOOP = Line("for {block} in {blk}:", ("blk",))
QKV = tuple(Line(f"    {x} = {{attn_{x}}}(y)", (f"attn_{x}",)) for x in "qkv")
ATTEND = Line("    y = softmax({scaled}) @ v", (), heads)
PROJECT = Line("    x = x + {attn_output}(y)", ("attn_output",))
HEAD = (Line("y = {output_norm}(x)", ("output_norm",)), Line("logits = {output}(y)", ("output",)))

GPT2 = (
    EMBED,
    Line("x = x + {position_embd}[position]", ("position_embd",)),
    LOOP,
    Line("    y = {attn_norm}(x)", ("attn_norm",)),
    Line("    q, k, v = {qkv}", ("attn_qkv",)),
    ATTEND,
    PROJECT,
    Line("    y = {ffn_norm}(x)", ("ffn_norm",)),
    Line("    y = {activation}({ffn_up}(y))", ("ffn_up",)),
    Line("    x = x + {ffn_down}(y)", ("ffn_down",)),
    *HEAD,
)
LLAMA = (
    EMBED,
    LOOP,
    Line("    y = {attn_norm}(x)", ("attn_norm",)),
    *QKV,
    Line("    q = {attn_q_norm}(q)", ("attn_q_norm",)),
    Line("    k = {attn_k_norm}(k)", ("attn_k_norm",)),
    Line("    q, k = rope(q), rope(k)", ("rope_freqs",), needs=lambda a: True),
    ATTEND,
    PROJECT,
    Line("    y = {ffn_norm}(x)", ("ffn_norm",)),
    Line("    y = silu({ffn_gate}(y)) * {ffn_up}(y)", ("ffn_gate", "ffn_up")),
    Line("    x = x + {ffn_down}(y)", ("ffn_down",)),
    *HEAD,
)
NANOCHAT = (
    Line("x = norm({token_embd}[id])", ("token_embd",)),
    Line("g = {smear_lambda} * sigmoid({smear_gate}(x[:{smear_width}]))", ("smear_lambda", "smear_gate")),
    Line("x = x + g * before(x)", (), lambda a: ["before(x): x of the token before; 0 for the first"],
         lambda a: "smear_gate" in stems(a)),
    Line("x0 = x", (), None, lambda a: "x0_lambdas" in stems(a)),
    LOOP,
    Line("    x = {resid_lambdas}[i] * x + {x0_lambdas}[i] * x0", ("resid_lambdas", "x0_lambdas")),
    Line("    y = norm(x)"),
    *QKV,
    Line("    g = {gate_scale}sigmoid({attn_value_gate}(y[:{gate_width}]))", ("attn_value_gate",)),
    Line("    v = v + g * {attn_value_embd}[id]", ("attn_value_embd",)),
    Line("    q = {qk_scale}norm(rope(q))"),
    Line("    k = {qk_scale}norm(rope(k))"),
    ATTEND,
    PROJECT,
    Line("    y = relu({ffn_up}(norm(x)))**2", ("ffn_up",)),
    Line("    x = x + {ffn_down}(y)", ("ffn_down",)),
    Line("    if i == {backout_layer}: x1 = x", (), None, lambda a: "backout_lambda" in stems(a)),
    Line("x = x - {backout_lambda} * x1", ("backout_lambda",)),
    Line("logits = {output}(norm(x))", ("output",)),
    Line("logits = {softcap} * tanh(logits / {softcap})", (), None, lambda a: bool(a.key("final_logit_softcapping"))),
)  # fmt: skip

FORMULAS: dict[str, tuple[Line, ...]] = {
    "gpt2": GPT2,
    "gpt": GPT2,
    "bigram": (Line("logits = {token_embd}[id]", ("token_embd",)),),
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "nanochat": NANOCHAT,
}

LAYER_NORM = "(x - mean) / sqrt(variance + {eps}) * weight + bias"
RMS_NORM = "x / sqrt(mean(x**2) + {eps}) * weight"
NORMS = {
    "gpt2": LAYER_NORM,
    "gpt": LAYER_NORM,
    "llama": RMS_NORM,
    "qwen2": RMS_NORM,
    "qwen3": RMS_NORM,
    "nanochat": "x / sqrt(mean(x**2) + {eps})",
}
FUNCTIONS = {  # shown where a line uses them
    "softmax": "exp(s) / sum of exp(s) over the positions that are seen",
    "gelu_erf": "x * (1 + erf(x / sqrt(2))) / 2",
    "gelu_tanh": "x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2",
    "relu": "max(x, 0)",
    "silu": "x / (1 + exp(-x))",
    "sigmoid": "1 / (1 + exp(-x))",
}


def stems(a: Anatomy) -> set[str]:
    return {p.stem for p in a.pieces}


def scaled(scale: float) -> str:
    """The scores: a scale of one over a root is written as their authors do."""
    root = 1 / scale if scale else 0.0
    square = round(root * root) if 0.5 < root * root < 1e9 else 0
    if square and isclose(root, sqrt(square), rel_tol=1e-6):
        return "q @ k.T" if square == 1 else f"q @ k.T / sqrt({square})"
    return f"q @ k.T * {number(scale)}"


def times(factor: float) -> str:
    return "" if factor == 1 else f"{number(factor)} * "


# ---- what authors call the parts -------------------------------------------------------------------------------------

LECTURE = dict(
    token_embd="token_embedding_table", position_embd="position_embedding_table", block="block", blk="blocks",
    attn_norm="ln1", qkv="query(y), key(y), value(y)", attn_output="sa.proj",
    ffn_norm="ln2", ffn_up="ffwd.net[0]", ffn_down="ffwd.net[2]", output_norm="ln_f", output="lm_head",
)  # fmt: skip
OPENAI = dict(  # and nanoGPT, minGPT, llm.c
    token_embd="wte", position_embd="wpe", block="block", blk="h",
    attn_norm="ln_1", attn_qkv="attn.c_attn", attn_output="attn.c_proj",
    ffn_norm="ln_2", ffn_up="mlp.c_fc", ffn_down="mlp.c_proj", output_norm="ln_f", output="lm_head",
)  # fmt: skip
META = dict(  # and llama2.c
    token_embd="tok_embeddings", block="layer", blk="layers",
    attn_norm="attention_norm", attn_q="wq", attn_k="wk", attn_v="wv", attn_q_norm="q_norm", attn_k_norm="k_norm",
    attn_output="wo", ffn_gate="w1", ffn_down="w2", ffn_up="w3", output_norm="norm",
)  # fmt: skip
TRANSFORMERS = dict(
    token_embd="embed_tokens", block="layer", blk="layers",
    attn_norm="input_layernorm", attn_q="q_proj", attn_k="k_proj", attn_v="v_proj", attn_q_norm="q_norm",
    attn_k_norm="k_norm", attn_output="o_proj", ffn_norm="post_attention_layernorm", ffn_gate="gate_proj",
    ffn_up="up_proj", ffn_down="down_proj", output_norm="norm", output="lm_head",
)  # fmt: skip
NANO = dict(
    token_embd="wte", block="i, block", blk="enumerate(h)", attn_q="c_q", attn_k="c_k", attn_v="c_v",
    attn_value_gate="ve_gate", attn_value_embd="value_embeds", attn_output="attn.c_proj",
    ffn_up="mlp.c_fc", ffn_down="mlp.c_proj", output="lm_head",
)  # fmt: skip
# by architecture and, where it matters, the beginning of pygpt.source; "": of all others
WORDS: dict[str, dict[str, Mapping[str, str]]] = {
    "gpt2": {"": OPENAI},
    "gpt": {"": LECTURE, "minGPT": OPENAI, "nanoGPT": OPENAI},
    "bigram": {"": LECTURE},
    "llama": {"": META, "Hugging Face": TRANSFORMERS},
    "qwen2": {"": TRANSFORMERS},
    "qwen3": {"": TRANSFORMERS},
    "nanochat": {"": NANO},
}


# ---- 1: what it is ---------------------------------------------------------------------------------------------------


def headline(a: Anatomy) -> list[str]:
    source = f", made from {clean(a.source, 40)}" if a.source else ""
    amounts = [(part, a.count(lambda p: p.size, part)) for part in PARTS]
    total = sum(n for _, n in amounts)
    shares = [f"{n:,} ({n / total:.1%}) in {part}" for part, n in amounts if n]
    if a.is_tied:
        shares.append("none in the head, which is the token embedding again")
    text = f"{clean(a.arch, 40)}{source}: {total:,} parameters, {', '.join(shares)}"
    return wrap(text, WIDTH, break_on_hyphens=False)


# ---- 2: the forward pass beside its tensors --------------------------------------------------------------------------

Cells = tuple[str, str, str, str]  # a tensor's name, shape, parameters, type; or a note and nothing


def forward_pass(a: Anatomy) -> list[str]:
    rows: list[tuple[str, Cells]] = []
    left = {(p.stem, p.layer is None): None for p in a.pieces if not p.is_zeros}  # tensors that no line has read yet
    for line in a.lines:
        cells = list(beside(a, line, left))
        code = [line.text] + [""] * (len(cells) - 1)
        rows += zip(code, cells or [("", "", "", "")], strict=True)
    for stem, is_global in left:
        rows += [("" if a.lines else clean(stem, 40), cells) for cells in tensor_cells(a, stem, is_global)]
    header = ("the forward pass" if a.lines else "", ("its tensors", "[out, in]", "parameters", "type"))
    return [*table([header, *rows]), *where(a)]


def beside(a: Anatomy, line: Line, left: dict[tuple[str, bool], None]) -> Iterator[Cells]:
    """What a line reads, in rows. A bias stands below its weight."""
    if line.reads == ("blk",):
        yield layers_cells(a)
        return
    for stem in line.reads:
        if stem == "output" and a.is_tied:
            yield "token_embd again", "", "", ""
        for name in (stem, stem + ".bias"):
            for is_global in (True, False):
                if (name, is_global) in left:
                    del left[name, is_global]
                    yield from tensor_cells(a, name, is_global)
    for note in line.notes(a) if line.notes else ():
        yield note, "", "", ""


def layers_cells(a: Anatomy) -> Cells:
    by_layer: dict[int, int] = {}
    for p in a.pieces:
        if p.layer is not None:
            by_layer[p.layer] = by_layer.get(p.layer, 0) + p.size
    sizes = [*by_layer.values()]
    each = f"{len(sizes)} x {sizes[0]:,}" if len(set(sizes)) == 1 else f"{len(sizes)} layers"
    name = f"blk.0 .. blk.{len(sizes) - 1}" if len(sizes) > 1 else "blk.0"
    return name, each, f"{sum(sizes):,}", ""


def tensor_cells(a: Anatomy, stem: str, is_global: bool) -> Iterator[Cells]:
    """A row for the tensors of one name in all layers; several where their shapes differ."""
    mine = [p for p in a.pieces if p.stem == stem and (p.layer is None) == is_global and not p.is_zeros]
    for shape in dict.fromkeys(p.shape for p in mine):
        group = [p for p in mine if p.shape == shape]
        name = "  bias" if stem.endswith(".bias") and a.lines else stem
        types = "/".join(sorted({p.type for p in group}))
        yield name, f"[{', '.join(map(str, shape))}]", f"{prod(shape):,}", types
        if not is_global and len(group) < a.n_layer:
            layers = ", ".join(str(p.layer) for p in group)
            yield (
                f"  in layers {layers}" if len(layers) < 30 else f"  in {len(group)} of {a.n_layer} layers",
                "",
                "",
                "",
            )


def table(rows: list[tuple[str, Cells]]) -> list[str]:
    """Lines of code and the cells beside them. Notes are as long as they need to be."""
    notes = ("", "", "")
    code = max(len(text) for text, _ in rows)
    name, shape, size = (max((len(c[i]) for _, c in rows if c[1:] != notes), default=0) for i in range(3))
    return [f"{text:<{code}}  {c[0]:<{name}}  {c[1]:>{shape}}  {c[2]:>{size}}  {c[3]}" for text, c in rows]


def where(a: Anatomy) -> list[str]:
    """The functions that the lines use."""
    text = "\n".join(line.text for line in a.lines)
    found = {
        f"{name}({'s' if name == 'softmax' else 'x'})": FUNCTIONS[name] for name in FUNCTIONS if f"{name}(" in text
    }
    norms = [a.words[p.stem] for p in a.pieces if p.stem.endswith("_norm")] if a.arch != "nanochat" else ["norm"]
    if norms and a.arch in NORMS:
        definition = NORMS[a.arch].format(eps=number(a.epsilon))
        if not any(p.stem.endswith("_norm.bias") and not p.is_zeros for p in a.pieces):
            definition = definition.removesuffix(" + bias")
        found = {", ".join(dict.fromkeys(norms)): definition} | found
    if "rope(" in text:
        found["rope(x)"] = rope(a)
    lines = [f"{name} = {definition}" if "(" in name else f"{name}: {definition}" for name, definition in found.items()]
    if n_zeros := sum(p.is_zeros for p in a.pieces):
        lines.append(f"{n_zeros} tensors of zeros are in the file for biases that the model does not have")
    lines = [part for line in lines for part in wrap(line, WIDTH - 7, subsequent_indent="    ")]
    return ["", "where  " + lines[0], *("       " + line for line in lines[1:])] if lines else []


def rope(a: Anatomy) -> str:
    n, base = a.key("rope.dimension_count", a.head_dim), number(a.key("rope.freq_base", 10000.0))
    pair = "x[2i], x[2i+1]" if a.arch == "llama" else f"x[i], x[i+{n // 2}]"
    kind = a.key("rope.scaling.type", "none")
    way = "-position" if a.arch == "nanochat" else "position"
    stretched = f", stretched ({clean(kind, 20)})" if kind != "none" else ""
    return f"the pairs ({pair}) of a head turned by {way} / {base}**(2i/{n}){stretched}"


# ---- 3: the file -----------------------------------------------------------------------------------------------------


def where_the_bytes_are(a: Anatomy) -> list[str]:
    """By part and type, largest first."""
    groups: dict[tuple[str, str], int] = {}
    for p in a.pieces:
        groups[p.part, p.type] = groups.get((p.part, p.type), 0) + p.bytes
    rest = a.file_bytes - sum(groups.values())
    rows = [*sorted(groups.items(), key=lambda row: -row[1]), (("keys, vocabulary, padding", ""), rest)]
    lines = [f"{'where the bytes are':<26}  {'type':<6}  {'bytes':>15}        %"]
    for (part, type), n in rows:
        share = n / a.file_bytes
        lines.append(f"{part:<26}  {type:<6}  {n:>15,}  {share:>7.1%}  {'#' * round(36 * share)}")
    return [*lines, f"{'in all':<26}  {'':<6}  {a.file_bytes:>15,}"]


# ---- 4: one token ----------------------------------------------------------------------------------------------------


def cost(a: Anatomy) -> list[str]:
    """Products and bytes, for the first token of a text and for the last one that the context holds."""
    last = a.info.n_ctx
    rows = [("what a token costs", "t is its position", "t = 1", f"t = {last:,}")]
    for part in PARTS:
        if n := a.products(part):
            how = "token_embd again" if part == "head" and a.is_tied else "its matrices, out x in"
            rows.append((part, how, f"{n:,}", f"{n:,}"))
    if a.has_attention:
        rows.append(("q @ k.T, p @ v", seen_formula(a), *(f"{a.attention_products(t):,}" for t in (1, last))))
    rows.append(("FLOPs", "2 x the products above", *(metric(a.flops(t)) for t in (1, last))))
    share = f"; by a prompt once per {_lib.ROWS} tokens" if any(map(a.products, PARTS)) else ""
    rows.append(("weights", "bytes read" + share, *[metric(a.info.bytes_per_token) + "B"] * 2))
    if a.has_attention:
        sizes = (a.cache_per_token, a.cache_bytes(last))
        rows.append(("k and v kept", cache_formula(a), *(metric(n) + "B" for n in sizes)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"{n:<{widths[0]}}  {how:<{widths[1]}}  {x:>{widths[2]}}  {y:>{widths[3]}}" for n, how, x, y in rows]


def seen_formula(a: Anatomy) -> str:
    i = a.info
    if any(0 < window < i.n_ctx for window in a.windows):
        return f"2 x {i.n_head} heads x {a.head_dim} x positions seen, over layers"
    return f"2 x {a.n_layer} layers x {i.n_head} heads x {a.head_dim} x t"


def cache_formula(a: Anatomy) -> str:
    return (
        f"{a.n_layer} layers x {a.info.n_head_kv} heads x ({a.head_dim} + {rounded(a.head_dim)}) {a.cache_number} "
        f"= {a.cache_per_token:,} x t"
    )


# ---- 5: constants ----------------------------------------------------------------------------------------------------


BY_DEFAULT = "by default of the architecture"
Default = Callable[["Anatomy"], "tuple[Any, str] | None"]


class Constant(NamedTuple):
    """A number that the forward pass uses. key: after the architecture's name, or pygpt's own; None: no key changes it.
    default: what holds where the file has no such key, and where that comes from."""

    name: str
    key: str | None
    default: Default


def always(value: Any, why: str = "") -> Default:
    return lambda a: (value, BY_DEFAULT + why)


def required(a: Anatomy) -> None:
    """A key without a default."""


def one_over_root(a: Anatomy) -> tuple[Any, str]:
    return 1 / sqrt(max(a.head_dim, 1)), f"{BY_DEFAULT}: 1 / sqrt({a.head_dim})"


SIZES = (
    Constant("context", "context_length", required),
    Constant("width", "embedding_length", required),
    Constant("feed-forward", "feed_forward_length", required),
    Constant("layers", "block_count", required),
    Constant("ids", "vocab_size", lambda a: (a.info.n_vocab, "the rows of token_embd in the file")),
    Constant("heads", "attention.head_count", required),
)
KEY_HEADS = Constant(
    "heads of k and v", "attention.head_count_kv", lambda a: (a.info.n_head, f"{BY_DEFAULT}: as many as of q")
)
HEAD_WIDTH = Constant("width of a head", "attention.key_length", lambda a: (a.head_dim, f"{BY_DEFAULT}: width / heads"))
EPSILON = Constant("norm epsilon", "attention.layer_norm_epsilon", required)
RMS_EPSILON = Constant("norm epsilon", "attention.layer_norm_rms_epsilon", required)
ROPE_BASE = Constant("rope base", "rope.freq_base", always(10000.0))
WINDOW = Constant("window (0: all)", "attention.sliding_window", always(0))
ROOT = Constant("attention scale", None, one_over_root)

OF_LLAMA = (
    *SIZES,
    KEY_HEADS,
    HEAD_WIDTH,
    Constant("width of a value", "attention.value_length", lambda a: (a.head_dim, f"{BY_DEFAULT}: as of a key")),
    ROOT,
    WINDOW,
    RMS_EPSILON,
    Constant("activation", None, always("silu")),
    ROPE_BASE,
    Constant("turned by rope", "rope.dimension_count", lambda a: (a.head_dim, f"{BY_DEFAULT}: all of a head")),
    Constant("rope scaling", "rope.scaling.type", always("none")),
)
CONSTANTS: dict[str, tuple[Constant, ...]] = {
    "gpt2": (*SIZES, ROOT, EPSILON, Constant("activation", "pygpt.activation", always("gelu_tanh", ": as in GPT-2"))),
    "gpt": (
        *SIZES,
        HEAD_WIDTH,
        Constant("attention scale", "attention.scale", one_over_root),
        EPSILON,
        Constant("activation", "activation", required),
    ),
    "bigram": (Constant("context", "context_length", always(1024)), SIZES[4]),
    "llama": OF_LLAMA,
    "qwen2": OF_LLAMA,
    "qwen3": OF_LLAMA,
    "nanochat": (
        *SIZES,
        KEY_HEADS,
        HEAD_WIDTH,
        ROOT,
        Constant("scale of q and k", "attention.qk_scale", always(1.0, ": none")),
        WINDOW,
        RMS_EPSILON,
        Constant("activation", None, always("relu**2")),
        ROPE_BASE,
        Constant("softcap of logits", "final_logit_softcapping", always(0.0, ": none")),
        Constant("value gate", "value_gate_scale", lambda a: None),
        Constant("x1 is kept after", "backout_layer", lambda a: None),
    ),
}


def constants(a: Anatomy) -> list[str]:
    rows = [row for constant in CONSTANTS.get(a.arch, ()) if (row := found(a, constant))]
    known = {full_name(a.arch, constant.key) for constant in CONSTANTS.get(a.arch, ()) if constant.key}
    others = [key for key in a.keys if key.startswith(a.arch + ".") and key not in known]
    rows += [("", shown(a.keys[key]), f"{clean(key, 50)} in the file") for key in others[:SHOWN]]
    if len(others) > SHOWN:
        rows.append(("", "", f"and {len(others) - SHOWN} keys more in the file"))
    width = max((len(row[1]) for row in rows), default=0)
    lines = [f"{name:<17}  {text:<{width}}  {origin}" for name, text, origin in rows]
    sentences = a.keys.get("pygpt.assumptions")
    sentences = [s for s in sentences if isinstance(s, str)] if isinstance(sentences, list) else []
    said = [line for s in sentences[:SHOWN] for line in wrap("- " + clean(s, 1000), WIDTH, subsequent_indent="  ")]
    if said:
        said = ["", "what the checkpoint did not say, and the converter assumed", *said]
    return ["its constants, and where each comes from", *lines, *said]


def found(a: Anatomy, constant: Constant) -> tuple[str, str, str] | None:
    """(name, value, origin)"""
    here = a.key(constant.key) if constant.key else None
    if here is not None:
        return constant.name, shown(here), f"{full_name(a.arch, constant.key or '')} in the file"
    default = constant.default(a)
    return (constant.name, shown(default[0]), default[1]) if default else None


# ---- 6: this machine -------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """Bytes per second that memory gives to the model's threads, products of int8 per second, bytes of the processors'
    last caches (None: not known), and the instruction set."""

    read: float
    mac: float
    cache: int | None
    isa: str


def speed(a: Anatomy) -> list[str]:
    threads = a.info.n_threads
    machine = Machine(_lib.measure_read(threads), _lib.measure_mac(threads), cache_of_cpus(), _lib.isa_current())
    return ["what limits its speed here", *limits(a, machine)]


def limits(a: Anatomy, m: Machine) -> list[str]:
    weights, last, every = a.info.bytes_per_token, a.info.n_ctx, a.int8_products(PARTS)
    body = every - a.int8_products(("head",))  # which a prompt needs for its last token only
    threads = f"{a.info.n_threads} thread{'s' * (a.info.n_threads > 1)}"
    rows = [f"machine  memory gives {metric(m.read)}B/s to {threads}, {m.isa} makes {metric(m.mac)} products of int8/s"]
    if any(map(a.products, PARTS)):
        full = f", {pace(m.read / (weights + a.cache_bytes(last)))} with all keys and values" if a.has_attention else ""
        rows.append(f"decode   memory / weights: {pace(m.read / weights)} tokens/s at most{full}")
    if body:
        rows.append(f"prefill  products of int8, attention left out: {pace(m.mac / body)} tokens/s at most")
    return [*rows, *wrap(verdict(a, m, every), WIDTH, break_on_hyphens=False)]


def verdict(a: Anatomy, m: Machine, products: int) -> str:
    """One sentence: which limit binds. products: of a decoded token, in int8."""
    weights = metric(a.info.bytes_per_token) + "B"
    reading, multiplying = a.info.bytes_per_token / m.read, products / m.mac
    if not any(map(a.products, PARTS)):
        return "Neither binds: a token is a row that is looked up."
    if m.cache is not None and a.info.bytes_per_token <= m.cache:
        alone = "the speed of products of floats is not measured"
        if products:
            alone = f"multiplying alone would allow {pace(1 / multiplying)} tokens/s"
        return (
            f"Memory does not bind, and its limit does not hold: the {weights} of a token fit into the processors' "
            f"caches ({metric(m.cache)}B) and are read from there; {alone}."
        )
    unless = "" if m.cache is not None else f", unless the {weights} fit into a cache, whose size is not known here"
    if not products:
        return f"Memory binds decoding{unless}; a prompt is multiplied in floats, whose speed is not measured."
    if reading < multiplying:
        times = multiplying / reading
        return f"Multiplying binds, decoding too: it takes {times:.1f} times as long as reading the weights."
    return (
        f"Memory binds decoding{unless}: reading the weights takes {reading / multiplying:.1f} times as long as "
        "multiplying with them; multiplying binds a prompt, whose tokens share what is read."
    )


def cache_of_cpus(folder: str = "/sys/devices/system/cpu") -> int | None:
    """Bytes of the last caches of the processors that this process may use; None where the system does not say."""
    sizes = {}
    try:
        for cpu in os.sched_getaffinity(0):
            base = os.path.join(folder, f"cpu{cpu}", "cache")
            levels = {read_word(base, name, "level"): name for name in os.listdir(base) if name.startswith("index")}
            last = levels[max(levels)]
            text = read_word(base, last, "size")
            sizes[read_word(base, last, "shared_cpu_list")] = int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except (OSError, AttributeError, ValueError, KeyError, IndexError):
        return None
    return sum(sizes.values())


def read_word(*path: str) -> str:
    with open(os.path.join(*path), encoding="ascii") as file:
        return file.read().strip()


# ---- words and numbers -----------------------------------------------------------------------------------------------


def clean(value: object, limit: int) -> str:
    """A text from a file as a terminal may see it: neither what it would obey, nor more than a line."""
    text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def number(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else clean(value, 30)


def shown(value: object) -> str:
    return listed(value) if isinstance(value, list) else number(value)


def listed(values: list[Any]) -> str:
    """1, 3, 5; equal ones together: 512 x 3, 2048."""
    runs: list[list[Any]] = []
    for one in values:
        if runs and runs[-1][0] == one:
            runs[-1][1] += 1
        else:
            runs.append([one, 1])
    text = ", ".join(number(one) + f" x {n}" * (n > 1) for one, n in runs[:SHOWN])
    return clean(text, 40)


def metric(n: float) -> str:
    """1234567 as 1.2 M, to be followed by a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} "


def pace(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.1f}"
