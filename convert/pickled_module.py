"""Models that were pickled whole, nn.Module and all: their tensors, and what they tell beside them.

No class of theirs is known here: a module is a `Stub` whose state has _parameters, _buffers and _modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pygpt._lib import Unsupported

from .unpickle import Stub, class_of, shown

WRAPPERS = ("model", "model_state_dict", "state_dict")  # keys that weights are saved under
PARTS = ("_parameters", "_buffers", "_modules")
# Of a model; what is in two places counts twice. A module that is a part of itself has no end.
MAX_PARTS = 100_000  # modules and tensors
MAX_NAME = 500  # characters


def unwrapped(value: object) -> list[object]:
    """A saved object, and what lies in it under the usual keys."""
    return [value, *(value.get(key) for key in WRAPPERS)] if type(value) is dict else [value]


def attributes(stub: Stub) -> dict[Any, Any]:
    state = stub.state
    if type(state) is tuple and state:  # beside the attributes there are slots
        state = state[0]
    return state if type(state) is dict else {}


def pairs(value: object) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in value.items() if type(k) is str] if type(value) is dict else []


def module_tensors(module: Stub) -> Iterator[tuple[str, Any]]:
    """The tensors of a module by the names that its state_dict has."""
    waiting, n = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        state = attributes(module)
        n += 1 + sum(len(part) for kind in PARTS if type(part := state.get(kind)) is dict)
        if n > MAX_PARTS:
            return
        parameters, buffers, parts = (
            [(prefix + name, part) for name, part in pairs(state.get(kind)) if len(prefix) + len(name) < MAX_NAME]
            for kind in PARTS
        )
        yield from (*parameters, *buffers)
        waiting += [(name + ".", part) for name, part in reversed(parts) if type(part) is Stub]


def modules(value: object) -> Iterator[Stub]:
    """The modules of a model that was pickled whole, or of one in a wrapper; each once."""
    waiting = [module for module in unwrapped(value) if type(module) is Stub]
    seen: set[int] = set()
    while waiting:
        module = waiting.pop()
        parts = attributes(module).get("_modules")
        if id(module) in seen or type(parts) is not dict:
            continue
        yield module
        if id(parts) not in seen:  # modules may share the dictionary of their parts
            waiting += [part for _, part in pairs(parts) if type(part) is Stub]
        seen |= {id(module), id(parts)}


def class_name(stub: Stub) -> str:
    """The class of an object, with its module; empty if it is none."""
    return str(class_of(stub) or "")


# ---- what it tells


def config_of(value: object) -> dict[Any, Any] | None:
    """The settings in the model or beside its weights, as nanoGPT and its relatives have them."""
    holders = [value] if type(value) is dict else []
    for holder in [*holders, *map(attributes, modules(value))]:
        config = holder.get("config")
        fields = attributes(config) if type(config) is Stub else config
        if type(fields) is dict and "n_head" in fields:
            return fields
    return None


def activation(path: str, value: object, known: tuple[str, ...]) -> str | None:
    """What the feed-forward part computes, one of `known`, by the modules in it; None: nothing says it."""
    found = sorted({name for module in modules(value) if (name := activation_of(module))})
    if len(found) > 1 or any(name not in known for name in found):
        raise Unsupported(
            f"{path}: expected its layers to compute one of {', '.join(known)}, found {shown(' and '.join(found))}"
        )
    return found[0] if found else None


def activation_of(module: Stub) -> str | None:
    where, _, name = class_name(module).rpartition(".")
    if name in ("NewGELU", "NewGELUActivation"):  # minGPT's and transformers'
        return "gelu_tanh"
    if where != "torch.nn.modules.activation" or name == "Softmax":
        return None
    if name == "GELU":
        return "gelu_tanh" if attributes(module).get("approximate") == "tanh" else "gelu_erf"
    return "relu" if name == "ReLU" else name
