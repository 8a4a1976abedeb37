"""The tensors of a Hugging Face folder: where they lie, and that a model takes each of them, in the expected shape."""

from __future__ import annotations

import os
import re

from pygpt._lib import BadFormat, NotFound

from .checkpoint import Input, state_dict
from .claims import Claims, is_same
from .hf_config import Config
from .json_file import read_object
from .safetensors_file import SafetensorsFile
from .torch_file import Tensor, TorchFile
from .unpickle import shown

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each also as shards with an index: the first that is there
FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")  # all of their names
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # follow from config.json
HEAD = "lm_head.weight"


# ---- files


def open_weights(folder: str, source: Input) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors by their names, nothing of them read yet; and the files that they are in."""
    for name in WEIGHTS:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return open_file(path, source), [path]
        if os.path.exists(path + ".index.json"):
            return open_shards(folder, path + ".index.json", source)
    raise NotFound(f"{folder}: expected its weights in {' or '.join(WEIGHTS)}, found neither")


def open_shards(folder: str, index: str, source: Input) -> tuple[dict[str, Tensor], list[str]]:
    """The index: {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", ..}}."""
    places = read_object(index).get("weight_map")
    if type(places) is not dict or not places:
        raise BadFormat(f"{index}: expected a weight_map with the file of each tensor, found none")
    if wrong := [name for name in places.values() if type(name) is not str or not FILE.fullmatch(name)]:
        raise BadFormat(f"{index}: expected names such as model-00001-of-00002.safetensors, found {shown(wrong[0])}")
    paths = [os.path.join(folder, name) for name in sorted(set(places.values()))]
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise NotFound(
            f"{missing[0]}: there is no such file; {len(missing)} of the {len(paths)} files that the index names are "
            "missing, copy them too"
        )
    weights: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in open_file(path, source).items():
            if name in weights:
                raise BadFormat(f"{path}: holds {shown(name)}, which another file holds too")
            weights[name] = tensor
    if (absent := next((name for name in places if name not in weights), None)) is not None:
        raise BadFormat(f"{os.path.join(folder, places[absent])}: expected the tensor {shown(absent)}, found none")
    return weights, [index, *paths]


def open_file(path: str, source: Input) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        return source.stack.enter_context(SafetensorsFile(path)).tensors
    weights = state_dict(source.stack.enter_context(TorchFile(path)).value)
    if not weights:
        raise BadFormat(f"{path}: expected a state_dict, found no tensors with names; save it again by save_pretrained")
    return weights


# ---- claims


class Model(Claims):
    """The tensors of a folder, with the shapes that follow from its config.json."""

    def __init__(self, folder: str, config: Config, weights: dict[str, Tensor]) -> None:
        super().__init__(folder, weights, "the model in config.json", "config.json")
        self.folder, self.config = folder, config

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The name may lack its first word, as in models that were saved without their head."""
        first, _, rest = name.partition(".")
        if first in ("model", "transformer") and name not in self.weights and rest in self.weights:
            name = rest
        if name not in self.weights:
            raise BadFormat(f"{self.folder}: expected a tensor {name} by config.json, found none in its files")
        return super().take(name, shape)

    def take_head(self, embedding: Tensor, is_tied: bool) -> Tensor | None:
        """The head, if it is a matrix of its own; the last that is taken."""
        head = self.take(HEAD, embedding.shape) if HEAD in self.weights or not is_tied else None
        if is_tied and head is not None:
            if not is_same(head, embedding):
                raise BadFormat(
                    f"{self.folder}: config.json says tie_word_embeddings, but {HEAD} is another matrix than the "
                    "embedding; say there what the model was trained with"
                )
            head = None
        self.finish(IGNORED)
        return head
