"""The GPT of Karpathy's lecture, gpt.py: a state_dict or the whole model, without settings. Sizes come from shapes.

It is known by names that no other source has: token_embedding_table.weight and blocks.0.sa.heads.0.key.weight. Stages
that the lecture passes through on its way have some of them; they are refused by what they lack.

x = token_embedding_table[id] + position_embedding_table[position]
for each block:   x += proj(heads(ln1(x)))     each head: softmax(query key^T * scale) value
                  x += net.2(relu(net.0(ln2(x))))
logits = lm_head(ln_f(x))

The scale is not in the file: the code computed with the width of the model until 2023-01-27, with that of a head since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pygpt._lib import BadArgument, Unsupported

from . import vocabularies
from .checkpoint import Answer, Checkpoint, Input, Options, Question, Stacked, Weights
from .claims import Claims, Row
from .open_questions import Found, find_gelu
from .shapes import count, dims, without_masks

NAME = "lecture gpt.py"
EPSILON = 1e-5  # of PyTorch's LayerNorm
SMALLEST, LARGEST = 1.18e-38, 3.4e38  # of float32, about
ACTIVATIONS = ("relu", "gelu_erf", "gelu_tanh")
TOKENS, HEAD = "token_embedding_table.weight", "blocks.0.sa.heads.0.key.weight"

# name in the checkpoint, name in GGUF, shape in V (ids), T (positions), C (width), A (all heads), F (feed-forward).
# Linear layers have no bias when they were made so.
EMBEDDINGS: tuple[Row, ...] = (
    (TOKENS, "token_embd.weight", "VC"),
    ("position_embedding_table.weight", "position_embd.weight", "TC"),
)
LAYER: tuple[Row, ...] = (
    ("ln1.weight", "attn_norm.weight", "C"),
    ("ln1.bias", "attn_norm.bias", "C"),
    ("sa.proj.weight", "attn_output.weight", "CA"),
    ("sa.proj.bias", "attn_output.bias", "C"),
    ("ln2.weight", "ffn_norm.weight", "C"),
    ("ln2.bias", "ffn_norm.bias", "C"),
    ("ffwd.net.0.weight", "ffn_up.weight", "FC"),
    ("ffwd.net.0.bias", "ffn_up.bias", "F"),
    ("ffwd.net.2.weight", "ffn_down.weight", "CF"),
    ("ffwd.net.2.bias", "ffn_down.bias", "C"),
)
NORM: tuple[Row, ...] = (("ln_f.weight", "output_norm.weight", "C"), ("ln_f.bias", "output_norm.bias", "C"))
OUTPUT: tuple[Row, ...] = (("lm_head.weight", "output.weight", "VC"), ("lm_head.bias", "output.bias", "V"))

# what an earlier stage lacks: a name, and what it is
STAGES = (
    ("position_embedding_table.weight", "positions (position_embedding_table)"),
    (HEAD, "blocks of several heads (blocks.0.sa.heads)"),
    ("blocks.0.sa.proj.weight", "projection after the heads (blocks.0.sa.proj)"),
    ("blocks.0.ffwd.net.2.weight", "second layer in the feed-forward part (blocks.0.ffwd.net.2)"),
    ("blocks.0.ln1.weight", "LayerNorm in the blocks (blocks.0.ln1)"),
)


def recognise(source: Input) -> str | None:
    weights = source.weights
    others = [name for name in (HEAD, OUTPUT[0][0]) if name in weights]
    return f"{TOKENS} and {others[0]}" if TOKENS in weights and others else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "meta", "text", "tokenizer", "gelu", "attention_scale")
    refuse_stages(source)
    n_layer, n_head, s = read_sizes(source)
    tensors = bind(source, n_layer, n_head, s)
    computes = find_gelu(source, options, "gpt.activation", ACTIVATIONS) or assume_relu()
    scale = find_scale(options, s["D"], s["C"])
    vocabulary = vocabularies.find(source.path, s["V"], options)
    return Checkpoint(
        source=NAME,
        recognised_by=recognise(source) or "",
        architecture="gpt",
        keys={
            "gpt.context_length": s["T"],
            "gpt.embedding_length": s["C"],
            "gpt.feed_forward_length": s["F"],
            "gpt.block_count": n_layer,
            "gpt.attention.head_count": n_head,
            "gpt.attention.key_length": s["D"],
            "gpt.attention.layer_norm_epsilon": EPSILON,
            "gpt.vocab_size": s["V"],
            **computes.keys,
            **scale.keys,
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"{n_layer} layers, {n_head} heads of {s['D']}, {s['C']} wide, context {s['T']}",
        questions=scale.questions,
        assumptions=[*computes.assumptions, *scale.assumptions, *vocabulary.assumptions],
    )


# ---- weights


def refuse_stages(source: Input) -> None:
    missing = [what for name, what in STAGES if name not in source.weights]
    if final_norm(source) not in source.weights:
        missing.append("LayerNorm after the blocks (ln_f)")
    if missing:
        raise Unsupported(
            f"{source.path}: expected the lecture's finished gpt.py, found no {' and no '.join(missing)}; an earlier "
            "stage of the lecture or a changed model would come out wrong, train the finished one"
        )


def final_norm(source: Input) -> str:
    """The last LayerNorm was the last of the blocks for a while."""
    name = "ln_f.weight"
    return name if name in source.weights else f"blocks.{count_layers(source)}.weight"


def count_layers(source: Input) -> int:
    return count((name for name in source.weights if ".sa." in name), r"blocks\.")


def read_sizes(source: Input) -> tuple[int, int, dict[str, int]]:
    """Layers, heads, and the sizes of shapes by their letters, D that of a head."""
    n_head = count(source.weights, r"blocks\.0\.sa\.heads\.")
    n_vocab, n_embd = dims(source, TOKENS, 2, NAME)
    n_ctx = dims(source, "position_embedding_table.weight", 2, NAME)[0]
    head_size = dims(source, HEAD, 2, NAME)[0]
    n_ff = dims(source, "blocks.0.ffwd.net.0.weight", 2, NAME)[0]
    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "A": n_head * head_size, "F": n_ff, "D": head_size}
    return count_layers(source), n_head, sizes


def bind(source: Input, n_layer: int, n_head: int, s: dict[str, int]) -> dict[str, Weights]:
    """The tensors by their GGUF names, checked. Biases may be absent, within the layers from all of them."""
    learned = without_masks(source, (".tril",), s["T"])
    known = {name.removeprefix("blocks.").partition(".")[2] for name in learned if name.startswith("blocks.")}
    claims = Claims(source.path, learned, NAME, "the shapes of its embeddings and first head")
    tensors: dict[str, Weights] = claims.take_rows(EMBEDDINGS, s)
    for i in range(n_layer):
        for kind, shape in (("weight", (s["D"], s["C"])), ("bias", (s["D"],))):
            if kind == "weight" or "sa.heads.0.key.bias" in known:
                tensors[f"blk.{i}.attn_qkv.{kind}"] = take_heads(claims, f"blocks.{i}.sa.heads", n_head, kind, shape)
        tensors |= claims.take_rows(without_absent(LAYER, known), s, f"blocks.{i}.", f"blk.{i}.")
    prefix = final_norm(source).removesuffix("weight")
    norm = [(theirs.replace("ln_f.", prefix), ours, letters) for theirs, ours, letters in NORM]
    tensors |= claims.take_rows(without_absent([*norm, *OUTPUT], learned), s)
    claims.finish()
    return tensors


def without_absent(rows: Iterable[Row], names: Collection[str]) -> list[Row]:
    """The rows of a table but those of biases that no name stands for."""
    return [row for row in rows if not row[0].endswith(".bias") or row[0] in names]


def take_heads(claims: Claims, prefix: str, n_head: int, kind: str, shape: tuple[int, ...]) -> Stacked:
    """Heads that were stored apart, as GGUF has them: all queries, then all keys, then all values."""
    parts = ("query", "key", "value")
    return Stacked([claims.take(f"{prefix}.{h}.{part}.{kind}", shape) for part in parts for h in range(n_head)])


# ---- what the weights do not say


def assume_relu() -> Found:
    return Found({"gpt.activation": "relu"}, ["The layers compute ReLU, as in the lecture (--gelu erf if GELU)."])


def find_scale(options: Options, head_size: int, n_embd: int) -> Found:
    """What scores are multiplied by."""
    key, option = "gpt.attention.scale", options.attention_scale
    named = {"head": head_size**-0.5, "width": n_embd**-0.5}
    if option is not None:
        scale = named[option] if option in named else number(option)
        return Found({key: scale}, [f"Scores are multiplied by {scale:.6g}, as the option says."])
    if head_size == n_embd:
        return Found({key: named["head"]})
    answers = [Answer(name, {key: scale}) for name, scale in named.items()]
    why = "as in the lecture's code since 2023-01-27"
    return Found(questions=[Question("the attention scale", "--attention-scale", answers, why)])


def number(text: str) -> float:
    try:
        value: Any = float(text)
    except ValueError:
        value = 0.0
    if not SMALLEST <= value <= LARGEST:  # NaN fails too
        raise BadArgument(f"expected --attention-scale to be head, width or a positive number, found {text!r}")
    return value
