"""Folders of Hugging Face. Owns what says that a folder is one, and which architecture it holds.

    config.json | model.safetensors, or shards and model.safetensors.index.json, or pytorch_model.bin
    | tokenizer.json or tokenizer.model | tokenizer_config.json | generation_config.json | chat_template.jinja

Written is what llama.cpp's converter writes, so that llama.cpp too computes what `transformers` computes.
"""

from __future__ import annotations

import os
import re

from pygpt._lib import BadFormat, Unsupported

from . import hf_gpt2, hf_llama, hf_nanochat
from .checkpoint import Checkpoint, Input, Options
from .hf_config import Config
from .hf_weights import FILE, Model, open_weights
from .json_file import read_object
from .unpickle import shown

NAME = "Hugging Face"
OTHERS = {"GPT2LMHeadModel": ("gpt2", hf_gpt2.convert), "NanoChatForCausalLM": ("nanochat", hf_nanochat.convert)}
MODEL_TYPES = {name: family.model_type for name, family in hf_llama.FAMILIES.items()}
MODEL_TYPES |= {name: model_type for name, (model_type, _) in OTHERS.items()}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def recognise(source: Input) -> str | None:
    """By names alone: a config.json, or a file of weights beside one."""
    folder, name = os.path.split(source.path)
    is_one = name == "config.json" or FILE.fullmatch(name)
    return "config.json" if is_one and os.path.isfile(os.path.join(folder, "config.json")) else None


def load(source: Input, options: Options) -> Checkpoint:
    options.refuse("a folder of Hugging Face", "text")
    folder = os.path.dirname(source.path)
    path = os.path.join(folder, "config.json")
    config = Config(path, read_object(path))
    architecture = find_architecture(config)
    weights, files = open_weights(folder, source)
    model = Model(folder, config, weights)
    family = hf_llama.FAMILIES.get(architecture)
    checkpoint = hf_llama.convert(model, family) if family else OTHERS[architecture][1](model)
    checkpoint.source, checkpoint.recognised_by = NAME, f"{architecture} in config.json"
    checkpoint.keys = {"general.name": model_name(folder)} | checkpoint.keys
    checkpoint.files, checkpoint.output = [path, *files], os.path.join(folder, "model.gguf")
    return checkpoint


def find_architecture(config: Config) -> str:
    """The name that config.json gives, or the one that belongs to its model_type."""
    names, model_type = config.get("architectures"), config.get("model_type")
    known = f"supported are {', '.join(MODEL_TYPES)}"
    if names is None and type(model_type) is str:
        names = [name for name, its_type in MODEL_TYPES.items() if its_type == model_type] or [model_type]
    if type(names) is not list or not names or type(names[0]) is not str:
        raise BadFormat(f"{config.path}: expected the name of an architecture in architectures, found none; {known}")
    name = names[0]
    if name not in MODEL_TYPES:
        kind = ""
        if re.search("moe|mixtral", name, re.IGNORECASE) or any(config.get(key) for key in EXPERTS):
            kind = ", a mixture of experts,"
        elif config.get("is_encoder_decoder") is True:
            kind = ", an encoder with a decoder,"
        raise Unsupported(f"{config.path}: the architecture {shown(name)}{kind} cannot be converted yet; {known}")
    if model_type not in (None, MODEL_TYPES[name]):
        raise Unsupported(
            f"{config.path}: names the architecture {name} but the model_type {shown(model_type)}, "
            f"expected {MODEL_TYPES[name]!r}; a changed model would come out wrong"
        )
    if config.get("quantization_config"):
        raise config.unsupported("its weights are quantized already (quantization_config); take the original model")
    code = config.get("auto_map")
    if type(code) is dict and "AutoModelForCausalLM" in code:
        raise config.unsupported("the model brings code of its own (auto_map)")
    return name


def model_name(folder: str) -> str:
    """The folder's; of a snapshot in the hub's cache the model's."""
    path = os.path.realpath(folder)
    name = os.path.basename(path)
    above = os.path.dirname(path)
    if os.path.basename(above) == "snapshots":  # models--<owner>--<name>/snapshots/<commit>
        name = os.path.basename(os.path.dirname(above)).rpartition("--")[2] or name
    return name.encode("utf-8", "replace").decode() or "model"
