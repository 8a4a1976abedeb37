"""config.json of a Hugging Face folder: typed values, what a missing one means, and RoPE's frequencies.

A value that is missing has the default of the configuration class that `transformers` would make. Whatever changes the
computation and is not known here is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pygpt._lib import BadFormat, Unsupported

from .checkpoint import whole_number
from .unpickle import shown


@dataclass
class Config:
    path: str
    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value; a null counts as missing."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        if default is not None and self.get(key) is None:
            return default
        return whole_number(self.values, key, low, high, self.path)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        return number(self.values, key, low, high, default, self.path)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise BadFormat(f"{self.path}: expected {key} to be true or false, found {shown(value)}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if type(value) is not str:
            raise BadFormat(f"{self.path}: expected {key} to be a name, found {shown(value)}")
        return value

    def unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"{self.path}: {what}, which cannot be converted yet")


def number(values: dict[str, Any], key: str, low: float, high: float, default: float | None, where: str) -> float:
    value = default if values.get(key) is None else values[key]
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]  # NaN fails too
        found = shown(values[key]) if key in values else "nothing"
        raise BadFormat(f"{where}: expected {key} to be a number from {low:g} to {high:g}, found {found}")
    return float(value)  # type: ignore[arg-type]


@dataclass
class Rope:
    """Rotary position embedding: GGUF's keys without the architecture, and what the frequencies are divided by."""

    keys: dict[str, Any]
    factors: np.ndarray | None  # (head_dim / 2)
    text: str
    assumptions: list[str]


def read_rope(config: Config, head_dim: int, n_ctx: int) -> Rope:
    """Transformers 5 has rope_parameters; before, rope_theta and rope_scaling stood apart."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if type(rope) is not dict or any(type(value) is dict for value in rope.values()):
        raise config.unsupported("its RoPE differs from layer to layer")
    where = f"{config.path}: RoPE"
    base = number({"rope_theta": config.get("rope_theta")} | rope, "rope_theta", 1, 1e15, 10000.0, where)
    if config.get("partial_rotary_factor", 1) != 1 or rope.get("partial_rotary_factor") not in (None, 1):
        raise config.unsupported("its RoPE turns a part of each head only (partial_rotary_factor)")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    keys: dict[str, Any] = {"rope.dimension_count": head_dim, "rope.freq_base": base}
    result = Rope(keys, None, f"RoPE {base:.0f}", [])
    if kind == "default":
        return result
    if kind == "dynamic":
        result.assumptions.append(f"Dynamic RoPE scaling is left out: it begins past the context of {n_ctx}.")
        return result
    if kind not in ("linear", "yarn", "llama3"):
        raise config.unsupported(f"its RoPE is scaled by {shown(kind)}")
    result.text += f" scaled by {kind}"
    original = original_context(config, rope, n_ctx)
    if rope.get("factor") is None and kind == "yarn":
        rope = rope | {"factor": n_ctx / original}
    factor = number(rope, "factor", 1, 1e6, None, where)
    if kind == "llama3":
        result.factors = llama3_factors(rope, base, head_dim, original, where)
        return result
    keys |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = original
        keys |= yarn_keys(config, rope, factor, where)
    return result


def original_context(config: Config, rope: dict[str, Any], n_ctx: int) -> int:
    """The context that a model had before it was stretched."""
    key = "original_max_position_embeddings"
    places = [values for values in (config.values, rope) if values.get(key) is not None]
    said = {whole_number(values, key, 1, 1 << 24, config.path) for values in places}
    if len(said) > 1:
        raise BadFormat(f"{config.path}: {key} stands there twice, as {' and '.join(map(str, sorted(said)))}")
    return said.pop() if said else n_ctx


def llama3_factors(rope: dict[str, Any], base: float, head_dim: int, original: int, where: str) -> np.ndarray:
    """What Llama 3.1 divides each frequency by: long waves by `factor`, short ones by 1, between them smoothly.

    As apply_scaling in Meta's llama-models and _compute_llama3_parameters in transformers' modeling_rope_utils.py.
    """
    factor = number(rope, "factor", 1, 1e6, None, where)
    low = number(rope, "low_freq_factor", 1e-6, 1e6, None, where)
    high = number(rope, "high_freq_factor", 1e-6, 1e6, None, where)
    if low >= high:
        raise BadFormat(f"{where}: expected low_freq_factor {low:g} to be below high_freq_factor {high:g}")
    wavelength = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: a long wave, 1: a short one
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def yarn_keys(config: Config, rope: dict[str, Any], factor: float, where: str) -> dict[str, float]:
    """YaRN (arXiv 2309.00071). llama.cpp knows its usual ramp only, and multiplies by 0.1 ln(factor) + 1 by itself."""
    if (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1) != (32, 1) or rope.get("truncate", True) is not True:
        raise config.unsupported("its YaRN has a ramp of its own (beta_fast, beta_slow, truncate)")

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1

    of = {key: number(rope, key, 0, 1e6, 0.0, where) for key in ("attention_factor", "mscale", "mscale_all_dim")}
    wanted = magnitude(1)
    if rope.get("attention_factor") is not None:
        wanted = of["attention_factor"]
    elif of["mscale"] and of["mscale_all_dim"]:
        wanted = magnitude(of["mscale"]) / magnitude(of["mscale_all_dim"])
    ratio = wanted / magnitude(1)
    return {} if math.isclose(ratio, 1, rel_tol=1e-6) else {"rope.scaling.attn_factor": ratio}
