"""minGPT's model.pt: a state_dict and nothing else. Owns its two layouts, its presets and its config.json.

since 2022-06-23   nanoGPT's names; c_attn.weight is [3 C, C], and was [C, 3 C] for a day. GELU is tanh
before             tok_emb.weight, pos_emb [1, T, C], blocks.0.attn.key.weight, head.weight. GELU is erf

The older names are minGPT's alone. With the newer ones four things together tell it from nanoGPT and its relatives:
each layer has a mask of floating-point numbers, and biases; lm_head.weight is not the token embedding; no model_args
lie beside the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import gpt2_layers, json_file, vocabularies
from .checkpoint import Checkpoint, Input, Options, Stacked, Weights
from .claims import Claims, Row, is_same
from .gpt2_layers import FUSED, HEAD, MASKS, Weighed, by_size, fused_axis
from .nanogpt import has_model_args
from .open_questions import Found, Heads, Size, Sizes, assume_gelu, find_gelu, find_heads
from .pickled_module import config_of
from .shapes import count, dims, without_masks
from .torch_file import Tensor

NAME = "minGPT"

# the older layout; name in the checkpoint, name in GGUF, shape in V (ids), C (width), F (feed-forward)
OLD_EMBEDDING: Row = ("tok_emb.weight", "token_embd.weight", "VC")
OLD_LAYER: tuple[Row, ...] = (
    ("ln1.weight", "attn_norm.weight", "C"),
    ("ln1.bias", "attn_norm.bias", "C"),
    ("attn.proj.weight", "attn_output.weight", "CC"),
    ("attn.proj.bias", "attn_output.bias", "C"),
    ("ln2.weight", "ffn_norm.weight", "C"),
    ("ln2.bias", "ffn_norm.bias", "C"),
    ("mlp.0.weight", "ffn_up.weight", "FC"),
    ("mlp.0.bias", "ffn_up.bias", "F"),
    ("mlp.2.weight", "ffn_down.weight", "CF"),
    ("mlp.2.bias", "ffn_down.bias", "C"),
)
OLD_FINAL: tuple[Row, ...] = (
    ("ln_f.weight", "output_norm.weight", "C"),
    ("ln_f.bias", "output_norm.bias", "C"),
    ("head.weight", "output.weight", "VC"),
)

# model_type in config.json: layers, width, heads
MODEL_TYPES = {
    "openai-gpt": (12, 768, 12),
    **gpt2_layers.MODELS,
    "gopher-44m": (8, 512, 16),
    "gpt-mini": (6, 192, 6),
    "gpt-micro": (4, 128, 4),
    "gpt-nano": (3, 48, 3),
}
KNOWN = by_size(MODEL_TYPES)
KNOWN_OLD: Sizes = {  # the older layout had no presets, but these notebooks
    **by_size(gpt2_layers.MODELS),
    (8, 512): ("minGPT's play_char.ipynb", 8),
    (2, 128): ("minGPT's play_math.ipynb", 4),
    (12, 256): ("minGPT's play_image.ipynb", 8),
}


def recognise(source: Input) -> str | None:
    if is_old(source.weights):
        return "tok_emb.weight, pos_emb and blocks.0.attn.key.weight"
    if is_new(source):
        return f"{FUSED}, a mask in each layer and a head of its own"
    return None


def is_old(weights: Mapping[str, Tensor]) -> bool:
    return all(name in weights for name in ("tok_emb.weight", "pos_emb", "blocks.0.attn.key.weight"))


def is_new(source: Input) -> bool:
    w = source.weights
    if fused_axis(w) is None or "transformer.h.0.attn.c_attn.bias" not in w or has_model_args(source.value):
        return False
    mask = w.get("transformer.h.0.attn.bias")
    if mask is None or len(mask.shape) != 4 or not mask.is_float or "transformer.h.0.attn.masked_bias" in w:
        return False  # the last is GPT-2 of transformers
    return HEAD in w and not is_same(w[HEAD], w["transformer.wte.weight"])


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse(NAME, "meta", "text", "tokenizer", "n_head", "gelu")
    if is_old(source.weights):
        model = weigh_old(source)
        heads = find_heads(source, options, model.size, KNOWN_OLD, heads_by_config)
        gelu = find_gelu(source, options) or assume_mingpts("erf", "before 2022-06-23", "tanh")
    else:
        model = gpt2_layers.weigh(source, NAME)
        heads = find_heads(source, options, model.size, KNOWN, heads_by_config)
        gelu = find_gelu(source, options) or assume_mingpts("tanh", "since 2022-06-23", "erf")
    gpt2_layers.check_config(source, model)
    vocabulary = vocabularies.find(source.path, model.sizes["V"], options)
    checkpoint = gpt2_layers.gpt2(model, heads, gelu, vocabulary)
    checkpoint.source, checkpoint.recognised_by = NAME, recognise(source) or ""
    checkpoint.assumptions += gpt2_layers.other_settings(config_of(source.value) or {}, NAME)
    return checkpoint


def assume_mingpts(gelu: str, when: str, other: str) -> Found:
    return assume_gelu(gelu, f"as in minGPT {when} (--gelu {other} if that was changed)")


def weigh_old(source: Input) -> Weighed:
    """The older layout."""
    n_vocab, n_embd = dims(source, "tok_emb.weight", 2, NAME)
    n_ctx = dims(source, "pos_emb", 3, NAME)[1]
    n_ff = dims(source, "blocks.0.mlp.0.weight", 2, NAME)[0]
    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": n_ff}
    claims = Claims(source.path, without_masks(source, MASKS, n_ctx), NAME, "the shapes of its embeddings")
    tensors: dict[str, Weights] = claims.take_rows([OLD_EMBEDDING], sizes)
    tensors["position_embd.weight"] = inner(claims.take("pos_emb", (1, n_ctx, n_embd)))
    n_layer = count(source.weights, r"blocks\.")
    for i in range(n_layer):
        for kind, shape in (("weight", (n_embd, n_embd)), ("bias", (n_embd,))):
            parts = [claims.take(f"blocks.{i}.attn.{part}.{kind}", shape) for part in ("query", "key", "value")]
            tensors[f"blk.{i}.attn_qkv.{kind}"] = Stacked(parts)
        tensors |= claims.take_rows(OLD_LAYER, sizes, f"blocks.{i}.", f"blk.{i}.")
    tensors |= claims.take_rows(OLD_FINAL, sizes)
    claims.finish()
    return Weighed(n_layer, sizes, tensors)


def inner(tensor: Tensor) -> Tensor:
    """A tensor of one matrix as that matrix."""
    return Tensor(tensor.storage, tensor.offset, tensor.shape[1:], tensor.stride[1:], tensor.name)


def heads_by_config(path: str, size: Size) -> Heads | None:
    """By the config.json that minGPT's programs write beside the model, if it is of a model of this size."""
    config = os.path.join(os.path.dirname(path), "config.json")
    model = json_file.read_object(config).get("model") if os.path.isfile(config) else None
    if type(model) is not dict:
        return None
    name = model.get("model_type") or model.get("name")  # the latter in the first days, in capitals at first
    preset = MODEL_TYPES.get(name.lower()) if type(name) is str else None
    sizes = preset or tuple(model.get(key) for key in ("n_layer", "n_embd", "n_head"))
    if sizes[:2] != size or type(sizes[2]) is not int or sizes[2] < 1:
        return None
    why = f"There are {sizes[2]} heads, as {config} says."
    return sizes[2], config, Found(assumptions=[why], files=[config])
