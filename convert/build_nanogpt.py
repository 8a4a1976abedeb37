"""nanoGPT's weights in other files than its ckpt.pt. Owns those of build-nanogpt, and those that hold weights alone.

build-nanogpt's log/model_05000.pt: {'model', 'config', 'step', 'val_loss'}, where config is an object with five sizes.
    It is told from nanoGPT's ckpt.pt by that object and by the absence of model_args.
A state_dict of nanoGPT, build-nanogpt or llm.c's train_gpt2.py without settings, or one of their models pickled whole.
    minGPT's has the same names; it is told by masks, biases and a head that is not the token embedding, all together.
"""

from __future__ import annotations

from typing import Any

from . import gpt2_layers, mingpt, vocabularies
from .checkpoint import Checkpoint, Input, Options
from .gpt2_layers import FUSED, by_size, fused_axis
from .nanogpt import has_model_args
from .open_questions import Found, Sizes, ask_gelu, assume_gelu, find_gelu, find_heads
from .pickled_module import config_of

NAME = "build-nanogpt"
CONFIG = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd"}  # all the fields of its config
KNOWN: Sizes = {
    **by_size(gpt2_layers.MODELS),
    (6, 384): ("nanoGPT's train_shakespeare_char.py", 6),
    (4, 128): ("nanoGPT's README for computers without a GPU", 4),
}


def recognise(source: Input) -> str | None:
    if fused_axis(source.weights) != 0 or has_model_args(source.value) or mingpt.is_new(source):
        return None
    return f"{FUSED} and {'a config' if config_of(source.value) else 'no settings'} beside it"


def load(source: Input, options: Options) -> Checkpoint:
    config = config_of(source.value) or {}
    has_bias = any(name.endswith(".c_attn.bias") for name in source.weights)
    name = source_name(config, has_bias)
    options.refuse(name, "meta", "text", "tokenizer", "n_head", "gelu")
    model = gpt2_layers.weigh(source, name, has_bias)
    heads = find_heads(source, options, model.size, KNOWN, mingpt.heads_by_config)
    gelu = find_gelu(source, options) or decide_gelu(name, config)
    gpt2_layers.check_config(source, model)
    vocabulary = vocabularies.find(source.path, model.sizes["V"], options)
    checkpoint = gpt2_layers.gpt2(model, heads, gelu, vocabulary)
    checkpoint.source, checkpoint.recognised_by = name, recognise(source) or ""
    checkpoint.assumptions += gpt2_layers.other_settings(config, name)
    return checkpoint


def source_name(config: dict[Any, Any], has_bias: bool) -> str:
    if set(config) == CONFIG:
        return NAME
    is_nanogpt = not has_bias or "dropout" in config  # the others always have biases, and never dropout
    return "nanoGPT" if is_nanogpt else "nanoGPT, build-nanogpt or llm.c"


def decide_gelu(name: str, config: dict[Any, Any]) -> Found:
    """build-nanogpt and llm.c compute tanh's, but nanoGPT is what most people train."""
    if name == NAME:
        return assume_gelu("tanh", "as in build-nanogpt (--gelu erf if not)")
    if "dropout" in config and "bias" not in config:
        return ask_gelu(("tanh", "erf"), "as in nanoGPT before 2023-06-14: its config has bias since 2023-01-27")
    return ask_gelu(("erf", "tanh"), "as in nanoGPT since 2023-06-14")
