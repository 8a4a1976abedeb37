"""Compares a converted model with the module that trained it: `--check reference.py:GPT`.

This is the one place that runs code of the user's, and it does so because he asks for it: his file is imported, his
module made, the checkpoint's weights loaded into it, and its logits held against the engine's. It needs PyTorch, which
nothing else here does. What his code prints goes to stderr, what it raises becomes a sentence.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from types import ModuleType
from typing import Any

import numpy as np

from pygpt._lib import BadArgument, NotFound, Unsupported, ids_array
from pygpt.generate import Model

from .torch_file import Tensor

TOLERANCE = 2e-3  # rounding in float32 made 7e-6 of it in a model of 3 million parameters; larger ones make more
MODULE = "pygpt_checked_reference"  # the name that his file is imported by: not __main__, so that it does not train
IMPORTING = "importing it"
LISTED = 3  # names in a sentence
MASK = ".attn.bias"  # of older code, where it is no vector: GPT-2's causal mask
# Other buffers that checkpoints hold and other versions of the same code do not: causal masks and rope's tables
BUFFERS = (".masked_bias", ".tril", ".mask", ".freqs_cos", ".freqs_sin", ".freqs_cis", ".inv_freq")


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """How far the engine's logits are from the module's, over all ids and the compared positions."""

    largest: float  # absolute difference
    rms: float
    n_positions: int
    same_top: bool  # is the likeliest token the same everywhere?
    agrees: bool  # no difference is larger than the tolerance
    sentence: str


def check(
    spec: str,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, object],
    model_path: str,
    ids: Sequence[int],
    tolerance: float = TOLERANCE,
) -> CheckResult:
    """Runs the module that `spec` names on `ids`, and the model file on the same, and compares all logits.

    THIS RUNS THE CODE in the file of `spec`, with all rights of the user, who named it for that.

    spec: "path/to/reference.py:GPT", a class or a function that makes the module, or the module itself.
    weights: the checkpoint's, by the names of its state_dict. settings: what the constructor may want to know.
    model_path: the converted model in float32. Raises pygpt.Error, with the line in his file where it was his code.
    """
    path, name = split(spec)
    tokens = ids_array(ids)
    if not tokens:
        raise BadArgument("--check needs at least one token to compare logits on, and the text gave none")
    if not weights:
        raise BadArgument(
            "--check needs a checkpoint with a state_dict, whose names a module can load; this file has none"
        )
    with Reference(path, import_torch()) as reference:
        module = make(reference, name, settings)
        fill(reference, module, weights)
        theirs = logits(reference, module, list(tokens))
    with Model(model_path) as model:
        ours = model.logits(tokens)
    theirs = theirs[:, : ours.shape[1]]  # the others are padding
    if theirs.shape[1] < ours.shape[1]:
        raise BadArgument(f"{path}: {name} gives logits of {theirs.shape[1]} ids, the checkpoint has {ours.shape[1]}")
    if not np.isfinite(theirs).all():
        raise BadArgument(f"{path}: the logits of {name} are not all finite numbers")
    return compare(f"{name} of {os.path.basename(path)}", ours[-len(theirs) :], theirs, tolerance)


def split(spec: str) -> tuple[str, str]:
    path, _, name = spec.rpartition(":")
    if not path or not name.isidentifier():
        raise BadArgument(f"--check {spec!r}: expected a file and a name in it, as in reference.py:GPT")
    if not os.path.isfile(path):
        raise NotFound(f"{path}: there is no such file; --check takes a Python file and a name in it")
    return os.path.abspath(path), name


def import_torch() -> Any:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it needs is not there
        is_absent = getattr(error, "name", None) == "torch"
        why = "which is not installed: pip install torch" if is_absent else f"which fails: {error}"
        raise Unsupported(f"--check runs your module in PyTorch, {one_line(why)}; or convert without --check") from None
    return torch


# ---- the user's file -------------------------------------------------------------------------------------------------


class Reference:
    """The user's file as a module. A context manager: what importing it changed is put back when it is left."""

    def __init__(self, path: str, torch: Any) -> None:
        self.path, self.folder, self.torch = path, os.path.dirname(path), torch

    def __enter__(self) -> Reference:
        self._modules, self._path = set(sys.modules), [self.folder, *sys.path]
        loader = SourceFileLoader(MODULE, self.path)
        self.module: ModuleType = module_from_spec(spec_from_file_location(MODULE, self.path, loader=loader))  # type: ignore[arg-type]
        sys.modules[MODULE] = self.module  # where dataclasses look for it
        try:
            with self.running(IMPORTING):
                loader.exec_module(self.module)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Forgets the file and its neighbours, so that others of the same name can be imported."""
        for name in set(sys.modules) - self._modules:
            if name == MODULE or self._is_neighbour(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]

    def _is_neighbour(self, file: str | None) -> bool:
        """Was it imported from the file's folder, not from an environment that lies in it?"""
        roots = {os.path.join(os.path.abspath(root), "") for root in self._path}
        holders = [root for root in roots if file and os.path.abspath(file).startswith(root)]
        return max(holders, key=len, default="") == os.path.join(self.folder, "")

    @contextmanager
    def running(self, doing: str) -> Iterator[None]:
        """Around every call of his code. Its folder is where it imports from, as if Python had been given the file."""
        path, argv, no_bytecode, folder = sys.path, sys.argv, sys.dont_write_bytecode, os.getcwd()
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        sys.path, sys.argv, sys.dont_write_bytecode = self._path, [self.path], True
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all is compared on the CPU
        try:
            with redirect_stdout(sys.stderr if sys.stderr is not None else StringIO()):
                yield
        except SystemExit as error:
            advice = '; move what trains or samples below if __name__ == "__main__":' if doing == IMPORTING else ""
            raise BadArgument(f"{self.path}: {doing} ended the program{self.line(error)}{advice}") from None
        except Exception as error:
            text = one_line(f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}")
            raise BadArgument(f"{self.path}: {doing} raised {text.removesuffix(':')}{self.line(error)}") from None
        finally:
            sys.path, sys.argv, sys.dont_write_bytecode = path, argv, no_bytecode
            os.chdir(folder)
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if devices is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = devices

    def line(self, error: BaseException) -> str:
        """Which line of his file was running, for the end of a sentence."""
        number = error.lineno if isinstance(error, SyntaxError) and error.filename == self.path else None
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == self.path:
                number = frame.tb_lineno
            frame = frame.tb_next
        return f" in line {number}" if number else ""

    def classes(self, are_modules: bool) -> list[type]:
        """The torch modules that his file defines, or its other classes; in their order."""
        mine = [v for v in vars(self.module).values() if isinstance(v, type) and v.__module__ == MODULE]
        return [kind for kind in mine if issubclass(kind, self.torch.nn.Module) == are_modules]


def one_line(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def few(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(one_line(name, 80) for name in names[:LISTED]) + more


# ---- making the module -----------------------------------------------------------------------------------------------


def make(reference: Reference, name: str, settings: Mapping[str, object]) -> Any:
    """The module, on the CPU, in float32 and ready to evaluate."""
    target, kind = getattr(reference.module, name, None), reference.torch.nn.Module
    if not callable(target):
        found = few([c.__name__ for c in reference.classes(are_modules=True)]) or "none"
        raise BadArgument(
            f"{reference.path}: expected a class or a function {name} in it, found none; its modules: {found}"
        )
    module = target
    if not isinstance(target, kind):
        arguments = arguments_of(reference, name, target, settings)
        with reference.running(f"{name}({', '.join(arguments.shown)})"):
            module = target(*arguments.positional, **arguments.named)
    module = getattr(module, "_orig_mod", module)  # before torch.compile
    if not isinstance(module, kind):
        raise BadArgument(f"{reference.path}: expected {name} to make a torch.nn.Module, found {type(module).__name__}")
    with reference.running(f"moving {name} to the CPU"):
        module = module.to("cpu").eval()
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
    return module


@dataclasses.dataclass
class Arguments:
    positional: list[object] = dataclasses.field(default_factory=list)
    named: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> list[str]:
        return [type(value).__name__ for value in self.positional] + [f"{key}=.." for key in self.named]


def arguments_of(reference: Reference, name: str, target: Callable, settings: Mapping[str, object]) -> Arguments:
    """None if it can be called without. Settings by their names. A config of a class that is in the same file."""
    parameters = parameters_of(target)
    required = [p for p in parameters if is_required(p)]
    if not required:
        return Arguments()
    known = {**settings, "device": "cpu"} if "device" in settings else dict(settings)
    if all(p.name in known and p.kind != p.POSITIONAL_ONLY for p in required):
        return Arguments(named=named_settings(parameters, known))
    if len(required) == 1:
        config = make_config(reference, required[0], known)
        if config is not None:
            return Arguments([config])
    signature = ", ".join(map(str, parameters))
    raise BadArgument(
        f"{reference.path}: cannot tell what to call {name}({one_line(signature)}) with; name a function without "
        "arguments that makes the module"
    )


def parameters_of(target: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []


def is_required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def named_settings(parameters: Sequence[inspect.Parameter], settings: Mapping[str, object]) -> dict[str, object]:
    """The settings that a callable takes by name: all of them if it takes any."""
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return dict(settings)
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {name: settings[name] for name in taken if name in settings}


def make_config(reference: Reference, parameter: inspect.Parameter, settings: Mapping[str, object]) -> object | None:
    """An object of the parameter's own class, or of the first class in the file that the settings can fill."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = getattr(reference.module, annotation, None)
    hinted = [annotation] if isinstance(annotation, type) and annotation.__module__ != "builtins" else []
    for kind in [*hinted, *reference.classes(are_modules=False)]:
        fields = parameters_of(kind)
        given = named_settings(fields, settings)
        if fields and given and all(p.name in given for p in fields if is_required(p)):
            with reference.running(f"{kind.__name__}({', '.join(f'{key}=..' for key in given)})"):
                return kind(**given)
        attributes = {key: value for key, value in settings.items() if key in vars(kind)}
        if not fields and attributes:  # class Config: n_layer = 6
            with reference.running(f"{kind.__name__}()"):
                config = kind()
                for key, value in attributes.items():
                    setattr(config, key, value)
            return config
    return None


# ---- its weights -----------------------------------------------------------------------------------------------------


def fill(reference: Reference, module: Any, weights: Mapping[str, Tensor]) -> None:
    """Loads the checkpoint's weights. Every parameter must be there, and nothing else but buffers."""
    path = reference.path
    with reference.running("state_dict"):
        own = module.state_dict(keep_vars=True)
        parameters = dict(module.named_parameters(remove_duplicate=False))
    others = [name for name in weights if name not in own and not is_buffer(name, weights[name])]
    refuse(path, others, "the checkpoint holds {}, which the module does not have")
    shared = [name for name in own if name in weights]
    odd = [name for name in shared if tuple(own[name].shape) != weights[name].shape]
    others = [f"{name} as {list(own[name].shape)}" for name in odd if not is_buffer(name, weights[name])]
    refuse(path, others, "the module has {}, which the checkpoint has in another shape")
    filled = {id(parameter) for name, parameter in parameters.items() if name in weights}
    others = [name for name, parameter in parameters.items() if id(parameter) not in filled]
    refuse(path, others, "the module has {}, which the checkpoint does not hold")
    state = {name: reference.torch.from_numpy(np.array(weights[name].array())) for name in shared if name not in odd}
    with reference.running("load_state_dict"):
        module.load_state_dict(state, strict=False)


def refuse(path: str, names: Sequence[str], sentence: str) -> None:
    if names:
        raise BadArgument(f"{path}: {sentence.format(few(names))}; is it the code that trained this checkpoint?")


def is_buffer(name: str, tensor: Tensor) -> bool:
    full = "." + name
    return full.endswith(BUFFERS) or (full.endswith(MASK) and len(tensor.shape) > 1)


# ---- its logits, and ours --------------------------------------------------------------------------------------------


def logits(reference: Reference, module: Any, ids: list[int]) -> np.ndarray:
    """float32 [positions, ids]: after every id, or after the last one where the module gives no others."""
    batch = reference.torch.tensor([ids], dtype=reference.torch.long, device="cpu")
    found = run(reference, module, batch)
    if len(found) != len(ids) and any(p.name == "targets" for p in parameters_of(module.forward)):
        found = run(reference, module, batch, batch)  # nanoGPT: all positions, if there is a loss
    if len(found) not in (1, len(ids)):
        raise BadArgument(
            f"{reference.path}: expected logits for each of {len(ids)} tokens, or for the last, found {len(found)} rows"
        )
    return found


def run(reference: Reference, module: Any, ids: Any, targets: Any = None) -> np.ndarray:
    """The module's logits as rows."""
    torch = reference.torch
    with reference.running("forward"), torch.no_grad():
        output = module(ids) if targets is None else module(ids, targets=targets)
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.dim() < 2:
        found = f"a tensor of {list(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise BadArgument(f"{reference.path}: expected the module to return logits, found {found}")
    return output.detach().cpu().float().numpy().reshape(-1, output.shape[-1])


def compare(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> CheckResult:
    """Both float32 [positions, ids]."""
    n, difference = len(ours), np.abs(ours.astype(np.float64) - theirs)
    largest, rms = float(difference.max()), float(np.sqrt(np.mean(difference**2)))
    n_other = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
    where = f"{n} positions" if n > 1 else "the one position that it gives"
    amounts = f"by {largest:.2g} at most (rms {rms:.2g})"
    if largest <= tolerance:
        top = "everywhere" if not n_other else f"but at {n_other}, where two are as likely"
        said = f"checked: the logits of {name} differ {amounts} at {where}; the likeliest token is the same {top}"
    else:
        first = int((difference.max(axis=1) > tolerance).argmax()) + 1
        beyond = f", beyond {tolerance:g} from position {first} on" if n > 1 else f", beyond {tolerance:g}"
        top = f"the likeliest token is another at {n_other} of them" if n_other else "the likeliest token is the same"
        said = (
            f"NOT THE SAME MODEL: the logits of {name} differ {amounts} at {where}{beyond}; {top}; an option "
            "of pygpt convert may say what the checkpoint does not"
        )
    return CheckResult(largest, rms, n, n_other == 0, largest <= tolerance, said)
