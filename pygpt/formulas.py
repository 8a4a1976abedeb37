"""What the architectures compute, and in whose words: lines of the forward pass, norms, functions, names, constants.

Owns these tables, and what they come to for one model. A new architecture is a row in FORMULAS, NORMS, WORDS and
CONSTANTS; without one its tensors are listed and counted all the same. Knows nothing of columns and pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, floor, isclose, log, pi, sqrt
from typing import Any, NamedTuple

from pygpt.anatomy import Anatomy, clean, number

# ---- sizes that depend on the architecture's keys --------------------------------------------------------------------


def key(a: Anatomy, name: str, default: Any = None) -> Any:
    """The value of one of the architecture's constants. Others are nothing to it, and may be anything."""
    known = any(constant.key == name for constant in CONSTANTS.get(a.arch, ()))
    full = full_name(a.arch, name)
    return a.keys[full] if known and full in a.keys else default


def full_name(arch: str, key: str) -> str:
    return key if key.startswith("pygpt.") else f"{arch}.{key}"


def head_dim(a: Anatomy) -> int:
    return key(a, "attention.key_length", a.info.n_embd // max(a.info.n_head, 1))


def scale(a: Anatomy) -> float:
    """What a query's product with a key is multiplied by."""
    return key(a, "attention.scale", 1 / sqrt(max(head_dim(a), 1)))


def epsilon(a: Anatomy) -> float:
    return key(a, "attention.layer_norm_epsilon", key(a, "attention.layer_norm_rms_epsilon", 0.0))


def windows(a: Anatomy) -> list[int]:
    """How many positions a token sees at most, itself included, layer by layer; 0: all."""
    value = key(a, "attention.sliding_window", 0)
    return value if isinstance(value, list) else [value] * a.n_layer


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
    i, seen = a.info, windows(a)
    shared = f"k and v have {i.n_head_kv}, each for {i.n_head // i.n_head_kv} of them"
    notes = [f"{i.n_head} heads of {head_dim(a)}; {shared if i.n_head > i.n_head_kv else 'side by side'}"]
    limited = {window: seen.count(window) for window in seen if 0 < window < i.n_ctx}
    if not limited:
        return [*notes, "a token sees itself and all before it"]
    for window, n in limited.items():
        who = f"in {n} of {a.n_layer} layers it" if n < a.n_layer else "a token"
        notes.append(f"{who} sees itself and {window - 1:,} before")
    if sum(limited.values()) < a.n_layer:
        notes.append("in the others itself and all before it")
    return notes


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
         lambda a: "smear_gate" in a.stems),
    Line("x0 = x", (), None, lambda a: "x0_lambdas" in a.stems),
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
    Line("    if i == {backout_layer}: x1 = x", (), None, lambda a: "backout_lambda" in a.stems),
    Line("x = x - {backout_lambda} * x1", ("backout_lambda",)),
    Line("logits = {output}(norm(x))", ("output",)),
    Line("logits = {softcap} * tanh(logits / {softcap})", (), None, lambda a: bool(key(a, "final_logit_softcapping"))),
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


def lines(a: Anatomy) -> list[Line]:
    """The lines of the forward pass that a model has, with their words filled in."""
    names, stems = words(a), a.stems | {"blk"} | ({"output"} if a.is_tied else set())
    rows = FORMULAS.get(a.arch, ())
    present = (r for r in rows if (r.needs(a) if r.needs else not r.reads or stems.intersection(r.reads)))
    return [row._replace(text=row.text.format_map(names)) for row in present]


# ---- the functions that the lines use --------------------------------------------------------------------------------

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
    "softmax(s)": "exp(s) / sum of exp(s) over the positions that are seen",
    "gelu_erf(x)": "x * (1 + erf(x / sqrt(2))) / 2",
    "gelu_tanh(x)": "x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2",
    "relu(x)": "max(x, 0)",
    "silu(x)": "x / (1 + exp(-x))",
    "sigmoid(x)": "1 / (1 + exp(-x))",
}


def definitions(a: Anatomy) -> list[str]:
    """Of the norms and the functions that a model's lines use."""
    text = "\n".join(line.text for line in lines(a))
    used = [f"{name} = {FUNCTIONS[name]}" for name in FUNCTIONS if name[: name.index("(") + 1] in text]
    return [*norms(a), *used, *(rope(a) if "rope(" in text else [])]


def norms(a: Anatomy) -> list[str]:
    """All are the same. Those without weights are no tensors, and have no names."""
    definition = NORMS.get(a.arch, "").format(eps=number(epsilon(a)))
    if not any(p.stem.endswith("_norm.bias") and not p.is_zeros for p in a.pieces):
        definition = definition.removesuffix(" + bias")
    called = words(a)
    names = [called[p.stem] for p in a.pieces if p.stem.endswith("_norm")] if "weight" in definition else ["norm"]
    return [f"{', '.join(dict.fromkeys(names))}: {definition}"] if definition and names else []


# ---- rope, and how it is stretched -----------------------------------------------------------------------------------


def rope(a: Anatomy) -> list[str]:
    """Its definition, with what the file says of every pair's speed."""
    n, kind, factor = turned(a), scaling(a), stretch(a)
    pair = "x[2i], x[2i+1]" if a.arch == "llama" else f"x[i], x[i+{n // 2}]"
    whose = "a head" if n == head_dim(a) else f"the first {n} values of a head"
    way = "-position" if a.arch == "nanochat" else "position"
    angle = f"{way} / {number(base(a))}**(2i/{n})"
    angle += f" / {number(factor)}" if kind == "linear" else ""
    angle += f" * (1 - slow(i) + slow(i) / {number(factor)})" if kind == "yarn" else ""
    angle += " / rope_freqs[i]" if "rope_freqs" in a.stems else ""
    grown = f" and multiplied by {number(yarn_magnitude(a))}" if kind == "yarn" else ""
    return [f"rope(x) = the pairs ({pair}) of {whose} turned by {angle}{grown}", *(slow(a) if kind == "yarn" else [])]


def base(a: Anatomy) -> float:
    return key(a, "rope.freq_base", 10000.0)


def turned(a: Anatomy) -> int:
    """How many values of a head."""
    return key(a, "rope.dimension_count", head_dim(a))


def stretch(a: Anatomy) -> float:
    return key(a, "rope.scaling.factor", key(a, "rope.scale_linear", 1.0))


def scaling(a: Anatomy) -> str:
    """none, linear or yarn. A factor without a word is linear."""
    kind = key(a, "rope.scaling.type", "linear")
    return "none" if kind == "linear" and stretch(a) == 1 else kind


def slow(a: Anatomy) -> list[str]:
    """How far yarn stretches a pair: the fast ones not at all, the slow ones by the whole factor."""
    n = turned(a)

    def pair(turns: float) -> float:
        context = key(a, "rope.scaling.original_context_length", a.info.n_ctx)
        return n * log(context / (turns * 2 * pi)) / (2 * log(base(a)))

    low = max(0, floor(pair(key(a, "rope.scaling.yarn_beta_fast", 32.0))))
    high = min(n - 1, ceil(pair(key(a, "rope.scaling.yarn_beta_slow", 1.0))))
    return [f"slow(i) = min(1, max(0, (i - {low}) / {number(max(0.001, high - low))}))"]


def yarn_magnitude(a: Anatomy) -> float:
    given = key(a, "rope.scaling.yarn_attn_factor", key(a, "rope.scaling.attn_factor", 1.0))
    return given * (1 + 0.1 * log(stretch(a)))


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


class Words(dict):
    """A part that has no other name is called as in the file."""

    def __missing__(self, stem: str) -> str:
        return f"{self['attn_qkv']}(y)" if stem == "qkv" else stem


def words(a: Anatomy) -> Words:
    """What the author calls the parts, and the file's constants as formulas show them."""
    dialects = WORDS.get(a.arch, {})
    own = next((names for source, names in dialects.items() if source and a.source.startswith(source)), None)
    fixed = {
        "activation": clean(key(a, "pygpt.activation", key(a, "activation", "gelu_tanh")), 20),
        "scaled": scaled(scale(a)),
        "qk_scale": times(key(a, "attention.qk_scale", 1.0)),
        "gate_scale": times(key(a, "value_gate_scale", 0.0)),
        "softcap": number(key(a, "final_logit_softcapping", 0.0)),
        "backout_layer": number(key(a, "backout_layer", 0)),
        "gate_width": a.width("attn_value_gate"),
        "smear_width": a.width("smear_gate"),
    }
    return Words(fixed | (own or dialects.get("", {})))


def scaled(scale: float) -> str:
    """The scores: a scale of one over a root is written as their authors do."""
    root = 1 / scale if scale else 0.0
    square = round(root * root) if 0.5 < root * root < 1e9 else 0
    if square and isclose(root, sqrt(square), rel_tol=1e-6):
        return "q @ k.T" if square == 1 else f"q @ k.T / sqrt({square})"
    return f"q @ k.T * {number(scale)}"


def times(factor: float) -> str:
    return "" if factor == 1 else f"{number(factor)} * "


# ---- constants, and what holds where a file does not say -------------------------------------------------------------

BY_DEFAULT = "by default of the architecture"
Default = Callable[[Anatomy], tuple[Any, str] | None]


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


def optional(a: Anatomy) -> None:
    """A key that nothing is computed with where it is absent."""


def of_yarn(value: float) -> Default:
    return lambda a: (value, BY_DEFAULT + ": as in YaRN's paper") if scaling(a) == "yarn" else None


def one_over_root(a: Anatomy) -> tuple[Any, str]:
    return 1 / sqrt(max(head_dim(a), 1)), f"{BY_DEFAULT}: 1 / sqrt({head_dim(a)})"


def rope_scaling(a: Anatomy) -> tuple[str, str] | None:
    if scaling(a) == "linear":
        return "linear", BY_DEFAULT + ", with a factor"
    return None if "rope_freqs" in a.stems else ("none", BY_DEFAULT)


def first_context(a: Anatomy) -> tuple[int, str] | None:
    return (a.info.n_ctx, f"{BY_DEFAULT}: the context") if scaling(a) == "yarn" else None


def divisors(a: Anatomy) -> tuple[str, str] | None:
    given = f"{turned(a) // 2}, one for each pair", "the tensor rope_freqs in the file"
    return given if "rope_freqs" in a.stems else None


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
HEAD_WIDTH = Constant(
    "width of a head", "attention.key_length", lambda a: (head_dim(a), f"{BY_DEFAULT}: width / heads")
)
EPSILON = Constant("norm epsilon", "attention.layer_norm_epsilon", required)
RMS_EPSILON = Constant("norm epsilon", "attention.layer_norm_rms_epsilon", required)
ROPE = (
    Constant("rope base", "rope.freq_base", always(10000.0)),
    Constant("turned by rope", "rope.dimension_count", lambda a: (head_dim(a), f"{BY_DEFAULT}: all of a head")),
    Constant("rope scaling", "rope.scaling.type", rope_scaling),
    Constant("rope factor", "rope.scaling.factor", optional),
    Constant("rope factor", "rope.scale_linear", optional),
    Constant("yarn: context", "rope.scaling.original_context_length", first_context),
    Constant("yarn: beta_fast", "rope.scaling.yarn_beta_fast", of_yarn(32.0)),
    Constant("yarn: beta_slow", "rope.scaling.yarn_beta_slow", of_yarn(1.0)),
    Constant("yarn: attn_factor", "rope.scaling.attn_factor", optional),
    Constant("yarn: attn_factor", "rope.scaling.yarn_attn_factor", optional),
    Constant("rope divisors", None, divisors),
)
WINDOW = Constant("window (0: all)", "attention.sliding_window", always(0))
ROOT = Constant("attention scale", None, one_over_root)

OF_LLAMA = (
    *SIZES,
    KEY_HEADS,
    HEAD_WIDTH,
    Constant("width of a value", "attention.value_length", lambda a: (head_dim(a), f"{BY_DEFAULT}: as of a key")),
    ROOT,
    WINDOW,
    RMS_EPSILON,
    Constant("activation", None, always("silu")),
    *ROPE,
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
    "bigram": (SIZES[0], SIZES[4]),
    "llama": OF_LLAMA,
    "qwen2": OF_LLAMA,
    "qwen3": OF_LLAMA,
    "nanochat": (
        *SIZES,
        KEY_HEADS,
        HEAD_WIDTH,
        ROOT,
        Constant("scale of q and k", "attention.qk_scale", required),
        WINDOW,
        RMS_EPSILON,
        Constant("activation", None, always("relu**2")),
        *ROPE,
        Constant("softcap of logits", "final_logit_softcapping", required),
        Constant("value gate", "value_gate_scale", optional),
        Constant("x1 is kept after", "backout_layer", optional),
    ),
}
