"""nanochat's model_{step}.pt: a bare state_dict. Owns its keys, its generations, and where its programs leave what.

    {base folder}/tokenizer/tokenizer.pkl
                 /chatsft_checkpoints/d12/model_000650.pt | meta_000650.json | optim_000650_rank0.pt

The model changed from month to month under the same names. Which generation it is of follows from the tensors that it
has; the numbers that came with each are in no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pygpt._lib import BadArgument, BadFormat, NotFound, Unsupported

from . import tiktoken_ranks, vocabularies
from .checkpoint import (
    Answer,
    Checkpoint,
    Input,
    Options,
    Question,
    Rows,
    Vocabulary,
    Weights,
    find_above,
    flag,
    whole_number,
)
from .claims import Claims
from .json_file import read_object
from .torch_file import Tensor
from .unpickle import shown

NAME = "nanochat"
EPSILON = 2.0**-23  # of torch's rms_norm in float32
SMEAR_WIDTH = 24  # how much of a token its gate looks at
PADDED_TO = (1, 64, 128)  # the rows of embeddings are the ids, rounded up to a multiple: nanochat's is 64

# name in the checkpoint, name in GGUF, shape in V (ids), C (width), K (keys), F (4 C), L (layers), S (what smear's gate
# looks at), 1
EMBEDDINGS = (
    ("transformer.wte.weight", "token_embd.weight", "VC"),
    ("lm_head.weight", "output.weight", "VC"),
)
LAYER = (
    ("attn.c_q.weight", "attn_q.weight", "CC"),
    ("attn.c_k.weight", "attn_k.weight", "KC"),
    ("attn.c_v.weight", "attn_v.weight", "KC"),
    ("attn.c_proj.weight", "attn_output.weight", "CC"),
    ("mlp.c_fc.weight", "ffn_up.weight", "FC"),
    ("mlp.c_proj.weight", "ffn_down.weight", "CF"),
)
VALUE_EMBEDDING = "value_embeds.{}.weight"
VALUE_GATE = "transformer.h.{}.attn.ve_gate.weight"
LAMBDAS = (("resid_lambdas", "resid_lambdas.weight", "L"), ("x0_lambdas", "x0_lambdas.weight", "L"))
SMEAR = (
    ("smear_gate.weight", "smear_gate.weight", "1S"),
    ("smear_lambda", "smear_lambda.weight", "1"),
    ("backout_lambda", "backout_lambda.weight", "1"),
)
GIVEN_UP = ("value_embed_A", "value_embed_B", "value_embed.", "v0_lambdas", "bigram_embed", "bigram_lambdas")

KNOWN_SETTINGS = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern"}


def recognise(source: Input) -> str | None:
    name = "transformer.h.0.attn.c_q.weight"
    return name if name in source.weights else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "text", "tokenizer", "softcap", "rope_base", "qk_scale")
    refuse_given_up(source)
    meta_path, found_by = find_meta(source.path)
    meta = read_object(meta_path)
    s = read_sizes(meta, meta_path)
    generation = find_generation(source, s)
    tensors = bind(source, s, generation, os.path.basename(meta_path))
    keys, questions, decided = settle_constants(s, generation, meta, options)
    chat, told_by = is_chat(source.path, meta)
    vocabulary, tokenizer = find_vocabulary(source.path, s.n_vocab, chat, options)
    groups = f" ({s.n_head_kv} for keys and values)" if s.n_head_kv != s.n_head else ""
    return Checkpoint(
        source=NAME,
        recognised_by=recognise(source) or "",
        architecture="nanochat",
        keys={
            "nanochat.context_length": s.n_ctx,
            "nanochat.embedding_length": s.n_embd,
            "nanochat.feed_forward_length": 4 * s.n_embd,
            "nanochat.block_count": s.n_layer,
            "nanochat.vocab_size": s.n_vocab,
            "nanochat.attention.head_count": s.n_head,
            "nanochat.attention.head_count_kv": s.n_head_kv,
            "nanochat.attention.key_length": s.n_embd // s.n_head,
            "nanochat.attention.layer_norm_rms_epsilon": EPSILON,
            **({"nanochat.backout_layer": s.n_layer // 2} if generation.smear else {}),
            **keys,
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"a {'chat' if chat else 'base'} model of {generation.period}, {s.n_layer} layers, "
        f"{s.n_head} heads{groups}, {s.n_embd} wide, context {s.n_ctx}",
        questions=questions,
        settings=meta["model_config"],
        assumptions=[*found_by, *decided, *told_by, *vocabulary.assumptions],
        files=[meta_path, *tokenizer],
    )


# ---- files

MODEL = re.compile(r"model_([0-9]{1,12})\.pt")
META = re.compile(r"meta_[0-9]+\.json")


def find_in_folder(folder: str) -> str | None:
    """The newest model in the folder, or in the only one below it that has any, such as d12 or base_checkpoints/d12."""
    if found := newest(folder):
        return found
    below = [*folders_in(folder), *(tag for kind in FOLDERS for tag in folders_in(os.path.join(folder, kind)))]
    models = [found for place in below if (found := newest(place))]
    if len(models) > 1:
        names = ", ".join(os.path.relpath(os.path.dirname(path), folder) for path in models[:10])
        raise BadArgument(f"{folder}: expected one model of nanochat, found {len(models)}: name one of {names}")
    return models[0] if models else None


def folders_in(folder: str) -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def newest(folder: str) -> str | None:
    """The model of the highest step."""
    try:
        steps = {int(found[1]): name for name in os.listdir(folder) if (found := MODEL.fullmatch(name))}
    except OSError:
        return None
    return os.path.join(folder, steps[max(steps)]) if steps else None


def find_meta(path: str) -> tuple[str, list[str]]:
    """meta_{step}.json of model_{step}.pt; of a file with another name the only one that is there."""
    folder, name = os.path.split(path)
    step = MODEL.fullmatch(name)
    expected = os.path.join(folder, f"meta_{step[1]}.json" if step else "meta_{step}.json")
    if os.path.isfile(expected):
        return expected, []
    others = [] if step else [other for other in os.listdir(folder or ".") if META.fullmatch(other)]
    if len(others) == 1:
        return os.path.join(folder, others[0]), [f"Its sizes are in {others[0]}, the only such file beside it."]
    raise NotFound(
        f"{expected}: there is no such file; the number of heads is in it and not in {name}: copy it too, as nanochat "
        "wrote both"
    )


FOLDERS = {  # where nanochat keeps models: are they for chats?
    "base_checkpoints": False,
    "mid_checkpoints": True,
    "chatsft_checkpoints": True,
    "chatrl_checkpoints": True,
}


def is_chat(path: str, meta: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Was it trained on conversations? By the folder's name, or else by what only base training notes."""
    tag = os.path.dirname(os.path.abspath(path))
    for folder in (tag, os.path.dirname(tag)):
        if (name := os.path.basename(folder)) in FOLDERS:
            return FOLDERS[name], []
    settings = meta.get("user_config")
    if type(settings) is dict and "depth" in settings:
        return False, ["It is taken for a base model: its meta names a depth, as only base training does."]
    return True, ["It is taken for a chat model: base training names a depth in the meta, and this one has none."]


# ---- sizes


@dataclass(frozen=True)
class Sizes:
    n_layer: int
    n_head: int
    n_head_kv: int
    n_embd: int
    n_ctx: int
    n_vocab: int
    window_pattern: str  # a letter per layer, over and over: S sees a short way back, L all


def read_sizes(meta: Mapping[str, Any], path: str) -> Sizes:
    settings = meta.get("model_config")
    if type(settings) is not dict:
        raise BadFormat(f"{path}: expected nanochat's model_config, found {shown(settings)}")
    where = f"{path}: model_config"
    if unknown := [name for name in settings if name not in KNOWN_SETTINGS]:
        raise Unsupported(
            f"{where} names {shown(unknown[0])}, which nanochat does not; a changed model would come out wrong"
        )
    s = Sizes(
        n_layer=whole_number(settings, "n_layer", 1, 10_000, where),
        n_head=whole_number(settings, "n_head", 1, 10_000, where),
        n_head_kv=whole_number(settings, "n_kv_head", 1, 10_000, where),
        n_embd=whole_number(settings, "n_embd", 1, 1 << 20, where),
        n_ctx=whole_number(settings, "sequence_len", 1, 1 << 24, where),
        n_vocab=whole_number(settings, "vocab_size", 1, 1 << 24, where),
        window_pattern=read_pattern(settings, where),
    )
    if s.n_embd % s.n_head:
        raise BadFormat(f"{where}: n_embd {s.n_embd} is no multiple of n_head {s.n_head}")
    if s.n_head % s.n_head_kv:
        raise BadFormat(f"{where}: {s.n_head} heads cannot share {s.n_head_kv} heads of keys and values evenly")
    if s.n_embd // s.n_head % 2:
        raise BadFormat(f"{where}: expected heads of an even width for RoPE, found {s.n_embd // s.n_head}")
    return s


def read_pattern(settings: Mapping[str, Any], where: str) -> str:
    pattern = settings.get("window_pattern")
    if pattern is None:  # until 2026-01-11
        return "L"
    if type(pattern) is not str or not pattern or set(pattern.upper()) - set("SL"):
        raise BadFormat(f"{where}: expected window_pattern to be of the letters S and L, found {shown(pattern)}")
    return pattern.upper()


# ---- generations


@dataclass(frozen=True)
class Constants:
    """What is in no file. A name that an option has is that option's."""

    when: str  # nanochat had them
    rope_base: float
    qk_scale: float
    softcap: float
    gate_scale: float  # of value embeddings
    short_window: Callable[[int], int]  # how far back a short window sees, by the length of sequences

    def keys(self, s: Sizes, has_gates: bool) -> dict[str, Any]:
        return {
            "nanochat.rope.freq_base": self.rope_base,
            "nanochat.attention.qk_scale": self.qk_scale,
            "nanochat.attention.sliding_window": windows(s, self.short_window(s.n_ctx)),
            "nanochat.final_logit_softcapping": self.softcap,
            **({"nanochat.value_gate_scale": self.gate_scale} if has_gates else {}),
        }


def windows(s: Sizes, short: int) -> list[int]:
    """How many keys a token sees in each layer, itself included; 0: all of them. The last layer sees far."""
    far = [{"L": s.n_ctx, "S": short}[s.window_pattern[i % len(s.window_pattern)]] for i in range(s.n_layer)]
    far[-1] = s.n_ctx
    return [0 if n >= s.n_ctx else n + 1 for n in far]


def tiled(part: int) -> Callable[[int], int]:
    """A part of the sequence, rounded up to a multiple of 128."""
    return lambda n_ctx: -(-n_ctx // (128 * part)) * 128


EARLY = Constants("before 2026-03-02", 10000.0, 1.0, 15.0, 2.0, lambda n_ctx: n_ctx // 2)
CAPPED_AT_20 = replace(EARLY, when="from 2026-03-02 to 03-08", softcap=20.0)
MARCH_9 = Constants("from 2026-03-09 to 03-13", 100000.0, 1.15, 15.0, 3.0, tiled(3))
MARCH_14 = Constants("since 2026-03-14", 100000.0, 1.2, 15.0, 3.0, tiled(4))
ALL = (EARLY, CAPPED_AT_20, MARCH_9, MARCH_14)


@dataclass(frozen=True)
class Generation:
    period: str  # in which nanochat was so
    lambdas: bool  # are there resid_lambdas and x0_lambdas?
    gate_width: int | None  # what the gates of value embeddings look at; None: there are none
    smear: bool  # are there smear and backout?
    constants: Constants


GENERATIONS = (
    Generation("2025-10-13 to 2026-01-10", False, None, False, EARLY),
    Generation("2026-01-11 to 01-17", True, None, False, EARLY),
    Generation("2026-01-18 to 03-08", True, 32, False, EARLY),
    Generation("2026-03-09 to 03-13", True, 12, False, MARCH_9),
    Generation("2026-03-14 and later", True, 12, True, MARCH_14),
)


def refuse_given_up(source: Input) -> None:
    """Value embeddings and bigrams were tried in other forms, which no later version of nanochat loads."""
    for name in source.weights:
        layer = re.fullmatch(r"value_embeds\.([0-9]+)\.weight", name)
        is_form = name.startswith("value_embeds") and not (layer and VALUE_GATE.format(layer[1]) in source.weights)
        if name.startswith(GIVEN_UP) or is_form:
            raise Unsupported(
                f"{source.path}: holds {shown(name)}, of an experiment of January 2026 that nanochat gave up; such "
                "models cannot be converted"
            )


def find_generation(source: Input, s: Sizes) -> Generation:
    weights = source.weights
    gates = [tensor for i in range(s.n_layer) if (tensor := weights.get(VALUE_GATE.format(i))) is not None]
    widths = {tensor.shape[-1] if tensor.shape else 0 for tensor in gates}
    has = [name for name, _, _ in (*LAMBDAS, *SMEAR) if name in weights]
    lambdas, smear = (any(name in has for name, _, _ in table) for table in (LAMBDAS, SMEAR))
    for generation in GENERATIONS:
        its_widths = {generation.gate_width} - {None}
        if (generation.lambdas, its_widths, generation.smear) == (lambdas, widths, smear):
            return generation
    has += [f"a ve_gate that looks at {width} values" for width in sorted(widths)]
    raise Unsupported(
        f"{source.path}: expected the tensors of a version of nanochat, and none had {', '.join(has)} and nothing "
        "else; a changed model would come out wrong"
    )


# ---- weights


def bind(source: Input, s: Sizes, generation: Generation, said_by: str) -> dict[str, Weights]:
    """The tensors by their GGUF names, checked, without rows of padding."""
    claims = Claims(source.path, source.weights, NAME, said_by)
    n_rows = count_rows(source, s.n_vocab, said_by)
    sizes = {
        "V": n_rows,
        "C": s.n_embd,
        "K": s.n_head_kv * (s.n_embd // s.n_head),
        "F": 4 * s.n_embd,
        "L": s.n_layer,
        "S": SMEAR_WIDTH,
        "1": 1,
    }

    def unpadded(tensor: Tensor) -> Weights:
        return tensor if n_rows == s.n_vocab else Rows(tensor, 0, s.n_vocab)

    tensors: dict[str, Weights] = {
        name: unpadded(tensor) for name, tensor in claims.take_rows(EMBEDDINGS, sizes).items()
    }
    for i in range(s.n_layer):
        tensors |= claims.take_rows(LAYER, sizes, f"transformer.h.{i}.", f"blk.{i}.")
        if VALUE_GATE.format(i) in source.weights:
            values = claims.take(VALUE_EMBEDDING.format(i), (n_rows, sizes["K"]))
            tensors[f"blk.{i}.attn_value_embd.weight"] = unpadded(values)
            gate = claims.take(VALUE_GATE.format(i), (s.n_head_kv, generation.gate_width or 0))
            tensors[f"blk.{i}.attn_value_gate.weight"] = gate
    if generation.lambdas:
        tensors |= claims.take_rows(LAMBDAS, sizes)
    if generation.smear:
        tensors |= claims.take_rows(SMEAR, sizes)
        tensors["smear_gate.weight"] = as_vector(tensors["smear_gate.weight"])
    claims.finish()
    return tensors


def count_rows(source: Input, n_vocab: int, said_by: str) -> int:
    """Of the embeddings. Since 2025-12-23 they are rounded up to a multiple of 64: the last mean nothing."""
    wte = source.weights.get("transformer.wte.weight")
    n_rows = wte.shape[0] if wte is not None and wte.shape else n_vocab
    if n_rows not in {-(-n_vocab // step) * step for step in PADDED_TO}:
        raise BadFormat(
            f"{source.path}: expected transformer.wte.weight to have {n_vocab} rows, the vocab_size in {said_by}, or "
            f"that rounded up to a multiple of {PADDED_TO[1]}, found {n_rows}; are model and meta of one training?"
        )
    return n_rows


def as_vector(matrix: Any) -> Tensor:
    """The only row of a matrix."""
    return Tensor(matrix.storage, matrix.offset, matrix.shape[1:], matrix.stride[1:], matrix.name)


# ---- constants

TOPIC = "the set of nanochat's constants"
OPTIONS = {  # name: what it sets
    "rope_base": "RoPE's base",
    "qk_scale": "The factor of queries and keys",
    "softcap": "The soft cap of the logits",
}


def settle_constants(
    s: Sizes, generation: Generation, meta: Mapping[str, Any], options: Options
) -> tuple[dict[str, Any], list[Question], list[str]]:
    """Keys of the constants, or the question what they are; and sentences about what is settled."""
    given = {name: value for name in OPTIONS if (value := options.constant(name)) is not None}
    said = [f"{OPTIONS[name]} is {value:.10g}, as the option says." for name, value in given.items()]
    own, why = likely(generation, {} if "softcap" in given else meta)
    has_gates = generation.gate_width is not None
    agreeing = agree([own, *(ALL if generation.lambdas else ())], given)
    if agreeing[0].when != own.when:
        why = f"as nanochat had it {agreeing[0].when}, which agrees with what was named"
    candidates = unique(agreeing, s, has_gates)
    left = [name for name in OPTIONS if name not in given]
    if len(candidates) == 1 or not left:
        rest = [text for name, text in describe(candidates[0], s, has_gates).items() if name not in given]
        if rest:
            said.append(f"{why[0].upper()}{why[1:]}: {', '.join(rest)}.")
        return candidates[0].keys(s, has_gates), [], said
    names = tell_apart([describe(c, s, has_gates) for c in candidates])
    answers = [
        Answer(name, c.keys(s, has_gates), {flag(option): getattr(c, option) for option in left})
        for name, c in zip(names, candidates, strict=True)
    ]
    return {}, [Question(TOPIC, flag(left[0]), answers, why)], said


def agree(sets: list[Constants], given: dict[str, float]) -> list[Constants]:
    """The sets that have what was named. What none of them has is put into all; what none has together, into the
    first."""
    for name, value in given.items():
        if all(getattr(c, name) != value for c in sets):
            sets = [replace(c, **{name: value}) for c in sets]
    found = [c for c in sets if all(getattr(c, name) == value for name, value in given.items())]
    return found or [replace(sets[0], **given)]


def likely(generation: Generation, meta: Mapping[str, Any]) -> tuple[Constants, str]:
    """The constants that its tensors were trained with, and how that is known.

    The soft cap went from 15 to 20 on 2026-03-02, and base training from evaluating 20971520 tokens to 41943040.
    """
    why = f"as in nanochat's code of {generation.period}, whose tensors these are"
    settings = meta.get("user_config")
    n_evaluated = settings.get("eval_tokens") if type(settings) is dict and "depth" in settings else None
    if generation.gate_width == 32 and type(n_evaluated) is int:
        if n_evaluated == 41943040:
            return CAPPED_AT_20, f"{why}, from 03-02 on as it was evaluated on {n_evaluated} tokens"
        if n_evaluated <= 20971520:
            return EARLY, f"{why}, before 03-02 as it was evaluated on {n_evaluated} tokens"
    return generation.constants, why


def unique(candidates: list[Constants], s: Sizes, has_gates: bool) -> list[Constants]:
    """Without those that compute the same for this model."""
    result: list[Constants] = []
    for candidate in candidates:
        if all(candidate.keys(s, has_gates) != known.keys(s, has_gates) for known in result):
            result.append(candidate)
    return result


def describe(c: Constants, s: Sizes, has_gates: bool) -> dict[str, str]:
    """Those that matter for this model."""
    texts = {
        "rope_base": f"RoPE base {c.rope_base:.10g}",
        "qk_scale": f"qk scale {c.qk_scale:.10g}",
        "softcap": f"softcap {c.softcap:.10g}",
    }
    if has_gates:
        texts["gate_scale"] = f"value gates up to {c.gate_scale:g}"
    if "S" in s.window_pattern:
        texts["short_window"] = f"short windows of {min(c.short_window(s.n_ctx), s.n_ctx)}"
    return texts


def tell_apart(texts: list[dict[str, str]]) -> list[str]:
    """A name for each, no longer than it takes."""
    differing = [name for name in texts[0] if len({text[name] for text in texts}) > 1]
    names: list[str] = []
    for n in range(1, len(differing) + 1):
        names = [", ".join(text[name] for name in differing[:n]) for text in texts]
        if len(set(names)) == len(names):
            break
    return names


# ---- vocabulary

# As nanochat renders conversations: a system message becomes the beginning of the first user's.
CHAT_TEMPLATE = (
    "{%- set turns = messages -%}{%- set system = '' -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set turns = messages[1:] -%}{%- set system = messages[0]['content'] + '\\n\\n' -%}"
    "{%- endif -%}"
    "{{- '<|bos|>' -}}"
    "{%- for message in turns -%}"
    "{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}"
    "{{- raise_exception('user and assistant must take turns, and the user begins') -}}"
    "{%- endif -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|user_start|>' + (system if loop.first else '') + message['content'] + '<|user_end|>' -}}"
    "{%- else -%}"
    "{{- '<|assistant_start|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'python' -%}{{- '<|python_start|>' + part['text'] + '<|python_end|>' -}}"
    "{%- elif part['type'] == 'python_output' -%}{{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}"
    "{%- else -%}{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|assistant_end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}"
)
CHAT_TOKENS = re.findall(r"<\|[a-z_]+\|>", CHAT_TEMPLATE)


def find_vocabulary(path: str, n_vocab: int, chat: bool, options: Options) -> tuple[Vocabulary, list[str]]:
    """The tokenizer, and its file if it was found: beside the model, or in the base folder, which is above."""
    found = []
    if options.tokenizer is not None:
        vocabulary = vocabularies.named(options.tokenizer, n_vocab)
    else:
        found = [find_tokenizer(path)]
        vocabulary = tiktoken_ranks.from_pickle(found[0], n_vocab)
    keys = vocabulary.keys
    if "tokenizer.ggml.bos_token_id" in keys:
        keys["tokenizer.ggml.add_bos_token"] = True  # every text begins with it
    if chat and set(CHAT_TOKENS) <= set(keys.get("tokenizer.ggml.tokens", ())):
        keys["tokenizer.chat_template"] = CHAT_TEMPLATE
        vocabulary.text += ", a chat template"
    elif chat:
        vocabulary.assumptions.append("It gets no chat template: its tokenizer lacks nanochat's special tokens.")
    return vocabulary, found


def find_tokenizer(path: str) -> str:
    beside = os.path.join(os.path.dirname(path), "tokenizer.pkl")
    if found := beside if os.path.isfile(beside) else find_above(path, os.path.join("tokenizer", "tokenizer.pkl")):
        return found
    raise NotFound(
        f"{path}: expected nanochat's tokenizer.pkl beside it, or in the folder tokenizer of a folder above, found "
        "neither; name it with --tokenizer tokenizer.pkl"
    )
