"""GPT-2's layers by the names that transformers gave them; nanoGPT, build-nanogpt and minGPT took them from there.

Owns these names, their shapes and their names in GGUF, and what a checkpoint of GGUF's architecture `gpt2` says.

x = wte[id] + wpe[position]
for each layer:   x += c_proj(attention(c_attn(ln_1(x))))
                  x += c_proj(gelu(c_fc(ln_2(x))))
logits = lm_head(ln_f(x))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pygpt._lib import BadFormat

from .checkpoint import Checkpoint, Input, Vocabulary, Weights, Zeros
from .claims import Claims, Row, is_same
from .open_questions import Found, Sizes
from .pickled_module import config_of
from .shapes import count, dims, without_masks
from .torch_file import Tensor
from .unpickle import shown

EPSILON = 1e-5  # of PyTorch's LayerNorm

# name in the checkpoint, name in GGUF, shape in V (ids), T (positions), C (width), 3 (3 C), F (feed-forward)
EMBEDDINGS: tuple[Row, ...] = (
    ("transformer.wte.weight", "token_embd.weight", "VC"),
    ("transformer.wpe.weight", "position_embd.weight", "TC"),
)
LAYER: tuple[Row, ...] = (
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
FINAL: tuple[Row, ...] = (
    ("transformer.ln_f.weight", "output_norm.weight", "C"),
    ("transformer.ln_f.bias", "output_norm.bias", "C"),
)
HEAD = "lm_head.weight"  # written as output.weight, only when it is not the token embedding
FUSED = "transformer.h.0.attn.c_attn.weight"
CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")  # [in, out] in that class
MASKS = (".attn.bias", ".attn.mask")  # causal

# Names in the settings of nanoGPT, build-nanogpt and minGPT. Rates of dropout matter in training only.
SETTINGS = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "model_type", "dropout"}
SETTINGS |= {"embd_pdrop", "resid_pdrop", "attn_pdrop"}
TRAINING = {"out_dir", "init_from", "eval_interval"}  # what tells nanoGPT's settings of training, which are many

# OpenAI's models: layers, width, heads
MODELS = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


def by_size(models: Mapping[str, tuple[int, int, int]]) -> Sizes:
    return {(n_layer, n_embd): (name, n_head) for name, (n_layer, n_embd, n_head) in models.items()}


@dataclass
class Weighed:
    """What the weights say."""

    n_layer: int
    sizes: Mapping[str, int]  # by their letters
    tensors: dict[str, Weights]  # by their GGUF names

    @property
    def size(self) -> tuple[int, int]:
        return self.n_layer, self.sizes["C"]


def fused_axis(weights: Mapping[str, Tensor]) -> int | None:
    """Where c_attn has three times the width: 0 in Linear, 1 in Conv1D; None: it is of another model."""
    fused, wte = weights.get(FUSED), weights.get("transformer.wte.weight")
    if fused is None or wte is None or len(fused.shape) != 2 or len(wte.shape) != 2:
        return None
    n_embd = wte.shape[1]
    return {(3 * n_embd, n_embd): 0, (n_embd, 3 * n_embd): 1}.get(fused.shape)


# ---- weights


def weigh(source: Input, name: str, has_bias: bool = True) -> Weighed:
    """The model by the shapes of its tensors alone. name: that of the source."""
    n_vocab, n_embd = dims(source, "transformer.wte.weight", 2, name)
    n_ctx = dims(source, "transformer.wpe.weight", 2, name)[0]
    axis = fused_axis(source.weights) or 0
    n_ff = dims(source, "transformer.h.0.mlp.c_fc.weight", 2, name)[axis]
    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": n_ff}
    claims = Claims(source.path, without_masks(source, MASKS, n_ctx), name, "the shapes of its embeddings")
    n_layer = count(source.weights, r"transformer\.h\.")
    return Weighed(n_layer, sizes, bind(claims, n_layer, sizes, has_bias, is_conv1d=axis == 1))


def bind(
    claims: Claims, n_layer: int, sizes: Mapping[str, int], has_bias: bool = True, is_conv1d: bool = False
) -> dict[str, Weights]:
    """All tensors, checked: the head only if it is another matrix than the embedding."""
    tensors = bind_layers(claims, n_layer, sizes, has_bias, is_conv1d)
    if HEAD in claims.weights:
        head = claims.take(HEAD, (sizes["V"], sizes["C"]))
        if not is_same(head, tensors["token_embd.weight"]):
            tensors["output.weight"] = head
    claims.finish()
    return tensors


def bind_layers(
    claims: Claims, n_layer: int, sizes: Mapping[str, int], has_bias: bool = True, is_conv1d: bool = False
) -> dict[str, Any]:
    """All but the head by their GGUF names, with zeros for absent biases."""
    sizes = {**sizes, "3": 3 * sizes["C"]}
    tensors: dict[str, Weights] = {}
    for theirs, ours, letters in rows(n_layer):
        shape = tuple(sizes[letter] for letter in letters)
        if theirs.endswith(".bias") and not has_bias:
            tensors[ours] = Zeros(shape)  # llama.cpp's gpt2 requires them
        elif is_conv1d and ours.endswith(CONV1D):
            tensors[ours] = claims.take(theirs, shape[::-1]).transposed()
        else:
            tensors[ours] = claims.take(theirs, shape)
    return tensors


def rows(n_layer: int) -> list[Row]:
    """The tables for a model of so many layers."""
    layers = [
        (f"transformer.h.{i}.{theirs}", f"blk.{i}.{ours}", letters)
        for i in range(n_layer)
        for theirs, ours, letters in LAYER
    ]
    return [*EMBEDDINGS, *layers, *FINAL]


def check_config(source: Input, model: Weighed) -> None:
    """What settings in the file say of sizes must be what the weights have."""
    config, sizes = config_of(source.value) or {}, model.sizes
    found = {"n_layer": model.n_layer, "n_embd": sizes["C"], "block_size": sizes["T"], "vocab_size": sizes["V"]}
    for name, size in found.items():
        if type(said := config.get(name)) is int and said != size:
            raise BadFormat(f"{source.path}: its config says {name} {shown(said)}, but its weights are of {size}")


def other_settings(settings: Mapping[Any, Any], name: str) -> list[str]:
    """A sentence about settings that only a changed model has. name: of the source that does not know them."""
    others = [setting for setting in settings if setting not in SETTINGS and not str(setting).startswith("_")]
    if not others or TRAINING & settings.keys():
        return []
    names = ", ".join(map(shown, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    known, followed = ("is", "it was") if len(others) == 1 else ("are", "they were")
    return [f"Its settings also name {names}, which {known} unknown to {name}; {followed} not followed."]


# ---- GGUF's gpt2


def gpt2(
    model: Weighed, heads: Found, gelu: Found, vocabulary: Vocabulary, *notes: str, epsilon: float = EPSILON
) -> Checkpoint:
    """The checkpoint, but for its source. notes: what the summary says beside."""
    sizes = model.sizes
    n_heads = [f"{n} heads" for n in heads.keys.values()]  # none if that is a question
    head = "a head of its own" if "output.weight" in model.tensors else "tied head"
    parts = [f"{model.n_layer} layers", *n_heads, f"{sizes['C']} wide", f"context {sizes['T']}", *notes, head]
    return Checkpoint(
        source="",
        recognised_by="",
        architecture="gpt2",
        keys={
            "gpt2.context_length": sizes["T"],
            "gpt2.embedding_length": sizes["C"],
            "gpt2.feed_forward_length": sizes["F"],
            "gpt2.block_count": model.n_layer,
            **heads.keys,
            "gpt2.attention.layer_norm_epsilon": epsilon,
            "gpt2.vocab_size": sizes["V"],
            **gelu.keys,
        },
        tensors=model.tensors,
        vocabulary=vocabulary,
        summary=", ".join(parts),
        questions=[*heads.questions, *gelu.questions],
        assumptions=[*heads.assumptions, *gelu.assumptions, *vocabulary.assumptions],
        files=heads.files,
    )
