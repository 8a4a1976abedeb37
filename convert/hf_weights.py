"""The tensors of a Hugging Face folder: where they lie, and that a model takes each of them, in the expected shape."""

from __future__ import annotations

import os
import re
from itertools import zip_longest

import numpy as np

from pygpt._lib import BadFormat, NotFound, Unsupported

from .checkpoint import Input, state_dict
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


class Model:
    """A folder whose tensors are claimed one by one; one that is left at the end belongs to another model."""

    def __init__(self, folder: str, config: Config, weights: dict[str, Tensor]) -> None:
        self.folder, self.config, self.weights = folder, config, weights
        self.claimed: dict[str, Tensor] = {}

    def claim(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor; its name may lack the first word, as in models that were saved without their head."""
        first, _, rest = name.partition(".")
        if first in ("model", "transformer") and name not in self.weights and rest in self.weights:
            name = rest
        tensor = self.weights.get(name)
        if tensor is None:
            raise BadFormat(f"{self.folder}: expected a tensor {name} by config.json, found none in its files")
        if tensor.shape != shape:
            raise BadFormat(
                f"{self.folder}: expected {name} to have shape {list(shape)} by config.json, found {list(tensor.shape)}"
            )
        if not tensor.is_float:
            raise BadFormat(
                f"{self.folder}: expected {name} to hold floating-point numbers, found {tensor.storage.dtype}"
            )
        tensor.name = name
        tensor.check()
        self.claimed[name] = tensor
        return tensor

    def claim_head(self, embedding: Tensor, is_tied: bool) -> Tensor | None:
        """The head, if it is a matrix of its own, and the last claim."""
        head = self.claim(HEAD, embedding.shape) if HEAD in self.weights or not is_tied else None
        if is_tied and head is not None:
            if not all(np.array_equal(a, b) for a, b in zip_longest(head.blocks(), embedding.blocks())):
                raise BadFormat(
                    f"{self.folder}: config.json says tie_word_embeddings, but {HEAD} is another matrix than the "
                    "embedding; say there what the model was trained with"
                )
            head = None
        self._check_claims(HEAD if head is None else "")
        return head

    def _check_claims(self, dropped: str) -> None:
        others = [name for name in self.weights if name not in self.claimed and not name.endswith(IGNORED)]
        if others:
            raise Unsupported(
                f"{self.folder}: expected the tensors that config.json speaks of and nothing else, found "
                f"{shown(others[0])} and {len(others) - 1} more; a changed model would come out wrong"
            )
        written = [tensor for name, tensor in self.claimed.items() if name != dropped]
        n_written = sum(tensor.size for tensor in written)
        n_stored = sum(storage.count for storage in {id(t.storage): t.storage for t in written}.values())
        if n_written > n_stored:  # tensors that share their memory
            raise BadFormat(
                f"{self.folder}: its weights are {n_written} numbers by their shapes, but the files hold {n_stored}"
            )
