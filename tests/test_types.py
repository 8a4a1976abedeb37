"""The types of weights: their bytes are what the gguf package says, their errors small, their products right."""

import gguf
import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf
from gguf.quants import dequantize, quantize
from pygpt.convert import mixtures
from pygpt.convert.model_file import requantize

import pygpt
from pygpt import _lib

TYPES = _lib.types()
CODES = [name for name, kind in TYPES.items() if kind.block > 1]
ISAS = [name for name, available in _lib.isas().items() if available]

# Root of the mean squared error, relative to that of the weights, for normally distributed weights.
NORMAL = {
    "q8_0": 0.0054,
    "q6_k": 0.0166,
    "q5_1": 0.0335,
    "q5_k": 0.0345,
    "q5_0": 0.0401,
    "q4_1": 0.0698,
    "q4_k": 0.0702,
    "iq4_nl": 0.0734,
    "iq4_xs": 0.0741,
    "q4_0": 0.0811,
    "mxfp4": 0.1115,
    "q3_k": 0.1439,
    "q2_k": 0.2628,
}


def oracle(rows: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return dequantize(rows, gguf.GGMLQuantizationType(TYPES[name].id))


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Of all numbers; of a NaN, that it is one."""
    number = ~np.isnan(expected)
    return np.array_equal(np.isnan(found), ~number) and np.array_equal(
        found[number].view(np.uint32), expected[number].view(np.uint32)
    )


def error(weights: np.ndarray, back: np.ndarray) -> float:
    return float(np.sqrt(np.mean((weights.astype(np.float64) - back) ** 2) / np.mean(weights.astype(np.float64) ** 2)))


def there_and_back(weights: np.ndarray, name: str) -> np.ndarray:
    return _lib.dequantize(_lib.quantize(weights, name), name)


# ---- bytes


@pytest.mark.parametrize("name", CODES)
def test_any_bytes_mean_what_the_gguf_package_says(name):
    rows = np.random.default_rng(1).integers(0, 256, (500, 4 * TYPES[name].bytes), np.uint8)
    for i, byte in enumerate((0x00, 0x7F, 0x80, 0xFF, 0x01)):  # scales that are none, subnormal, negative
        rows[i] = byte
    assert same_bits(_lib.dequantize(rows, name), oracle(rows, name))


@pytest.mark.parametrize("name", CODES)
def test_what_is_quantized_here_is_read_the_same_by_the_gguf_package(name):
    weights = np.random.default_rng(2).normal(0, 0.02, (64, 512)).astype(np.float32)
    rows = _lib.quantize(weights, name)
    assert same_bits(_lib.dequantize(rows, name), oracle(rows, name))
    assert error(weights, oracle(rows, name)) < 0.3


def test_q8_0_is_the_gguf_packages_byte_for_byte():
    weights = np.random.default_rng(3).normal(0, 0.02, (64, 512)).astype(np.float32)
    assert np.array_equal(_lib.quantize(weights, "q8_0"), quantize(weights, gguf.GGMLQuantizationType.Q8_0))


# ---- errors


@pytest.mark.parametrize("name", CODES)
def test_errors_are_those_that_are_known(name):
    weights = np.random.default_rng(4).normal(0, 0.02, (256, 1024)).astype(np.float32)
    assert 0.97 * NORMAL[name] < error(weights, there_and_back(weights, name)) < 1.01 * NORMAL[name]


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"])
def test_fitted_scales_are_better_than_those_that_let_all_weights_fit(name):
    weights = np.random.default_rng(5).laplace(0, 0.02, (64, 512)).astype(np.float32)
    plain = oracle(quantize(weights, gguf.GGMLQuantizationType(TYPES[name].id)), name)
    assert error(weights, there_and_back(weights, name)) < 0.98 * error(weights, plain)


@pytest.mark.parametrize("name", CODES)
def test_blocks_of_one_value_and_of_extremes_stay_finite(name):
    one_weight = np.zeros((1, 512), np.float32)
    one_weight[0, [7, 300]] = 0.5, -3
    ones = np.ones((1, 512), np.float32)
    for weights in (0 * ones, -0.7 * ones, one_weight, 65504 * ones, 2e4 * one_weight):
        back = there_and_back(weights, name)
        assert np.isfinite(back).all() and np.abs(back - weights).max() <= 0.13 * np.abs(weights).max()
    assert not there_and_back(1e-20 * ones, name).any() or name == "mxfp4"


# ---- models


@pytest.fixture(scope="module")
def tensors():
    """Of a model whose layers add about as much as they get: what weights are off by is not blown up."""
    found = gpt2_tensors(48, 32, 256, 2, np.random.default_rng(6))
    return {name: 0.2 * array if array.ndim == 2 else array for name, array in found.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CODES)
def test_models_compute_with_the_weights_that_the_file_holds(tmp_path, monkeypatch, tensors, name, isa):
    """Beside a model of the same weights in f32 only the rounding of activations remains."""
    monkeypatch.setenv("PYGPT_ISA", isa)
    keys = gpt2_keys(32, 256, 2) | character_keys([chr(0x100 + i) for i in range(48)])
    held = {n: there_and_back(w, name) if w.ndim == 2 else w for n, w in tensors.items()}
    ids = np.random.default_rng(7).integers(0, 48, 15).tolist()
    with (
        pygpt.Model(write_gguf(tmp_path / "q.gguf", tensors, keys, name)) as model,
        pygpt.Model(write_gguf(tmp_path / "f.gguf", held, keys)) as twin,
    ):
        expected, found = twin.logits(ids), model.logits(ids)
        with model.session() as session:
            one_by_one = np.stack([session.feed([id]) for id in ids])
    assert np.array_equal(one_by_one, found)
    assert error(expected, found) < 0.02


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_k", "q4_k", "q4_0"])
def test_models_stay_near_their_originals(tmp_path, tensors, name):
    keys = gpt2_keys(32, 256, 2) | character_keys([chr(0x100 + i) for i in range(48)])
    ids = np.random.default_rng(8).integers(0, 48, 15).tolist()
    with (
        pygpt.Model(write_gguf(tmp_path / "f.gguf", tensors, keys)) as original,
        pygpt.Model(write_gguf(tmp_path / "q.gguf", tensors, keys, name)) as model,
    ):
        assert error(original.logits(ids), model.logits(ids)) < 3 * NORMAL[name] + 0.02


# ---- mixtures: expected values are what llama.cpp's llama_model_quantize wrote for models of these shapes


def llama_shapes(layers: int, width: int = 256, hidden: int = 512, sharing: int = 1, head: bool = False):
    shapes = {"token_embd.weight": (99, width), "output_norm.weight": (width,)}
    if head:
        shapes["output.weight"] = (99, width)
    for i in range(layers):
        parts = {"attn_q": (width, width), "attn_k": (width // sharing, width), "attn_v": (width // sharing, width)}
        parts |= {"attn_output": (width, width), "ffn_gate": (hidden, width), "ffn_up": (hidden, width)}
        parts |= {"ffn_down": (width, hidden), "attn_norm": (width,)}
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in parts.items()}
    return shapes


def layers_with(plan: dict[str, mixtures.Choice], part: str, type: str) -> list[int]:
    return [int(n.split(".")[1]) for n, c in plan.items() if n.endswith(f".{part}.weight") and c.type == type]


@pytest.mark.parametrize("type", ["q4_k_m", "q5_k_m"])
def test_the_better_layers_of_k_m(type):
    plan = mixtures.choose(llama_shapes(24), type)
    better = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert layers_with(plan, "attn_v", "q6_k") == layers_with(plan, "ffn_down", "q6_k") == better
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert len(layers_with(plan, part, type[:4])) == 24
    assert plan["token_embd.weight"].type == "q6_k" and plan["blk.0.attn_norm.weight"].type == "f32"


def test_small_mixtures_of_few_layers():
    plan = mixtures.choose(llama_shapes(3, sharing=4, head=True), "q4_k_m")
    assert layers_with(plan, "attn_v", "q6_k") == [2] and plan["token_embd.weight"].type == "q4_k"
    assert plan["output.weight"].type == "q6_k"
    plan = mixtures.choose(llama_shapes(16, sharing=4), "q4_k_s")
    assert layers_with(plan, "attn_v", "q5_k") == [0, 1, 2, 3] and layers_with(plan, "ffn_down", "q5_k") == [0, 1]
    plan = mixtures.choose(llama_shapes(16), "q3_k_m")
    assert layers_with(plan, "attn_v", "q5_k") == [0, 1] and layers_with(plan, "ffn_down", "q5_k") == [0]
    assert len(layers_with(plan, "attn_output", "q4_k")) == 16 and len(layers_with(plan, "ffn_down", "q4_k")) == 15
    for sharing, type in ((1, "q3_k"), (4, "q4_k")):
        assert len(layers_with(mixtures.choose(llama_shapes(4, sharing=sharing), "q2_k"), "attn_v", type)) == 4
    assert len(layers_with(mixtures.choose(llama_shapes(4, sharing=4), "iq4_xs"), "attn_v", "q5_k")) == 4


def test_queries_keys_and_values_in_one_matrix_are_treated_as_values():
    shapes = {f"blk.{i}.attn_qkv.weight": (768, 256) for i in range(12)} | {"position_embd.weight": (64, 256)}
    plan = mixtures.choose(shapes, "q4_k_m")
    assert layers_with(plan, "attn_qkv", "q6_k") == [0, 3, 6, 9, 10, 11]
    assert plan["position_embd.weight"].type == "f16"


@pytest.mark.parametrize(
    ("type", "matrix", "narrow_v", "head"),
    [
        ("q4_0", "q4_0", "q4_0", "q8_0"),
        ("q8_0", "q8_0", "q8_0", "q8_0"),
        ("q3_k_s", "q4_0", "q4_0", "q8_0"),
        ("q4_k_m", "q5_0", "q8_0", "q8_0"),
        ("q5_k_m", "q5_1", "q8_0", "q8_0"),
        ("q6_k", "q8_0", "q8_0", "q8_0"),
        ("iq4_xs", "iq4_nl", "iq4_nl", "q8_0"),
    ],
)
def test_narrow_rows_get_a_type_with_smaller_blocks(type, matrix, narrow_v, head):
    plan = mixtures.choose(llama_shapes(24, width=896, hidden=4864, sharing=7), type)
    assert {plan[f"blk.3.{part}.weight"].type for part in ("attn_q", "attn_output", "ffn_up")} == {matrix}
    assert plan["token_embd.weight"].type == head
    if type.endswith("_m"):
        assert plan["blk.5.attn_v.weight"].type == narrow_v and plan["blk.5.ffn_down.weight"].type == "q6_k"


def test_every_name_is_llama_cpps_and_has_its_number():
    numbers = {
        kind.name.lower().removeprefix("mostly_").removeprefix("all_"): kind.value for kind in gguf.LlamaFileType
    }
    numbers["mxfp4"] = numbers["mxfp4_moe"]
    assert {name: mixture.number for name, mixture in mixtures.MIXTURES.items()}.items() <= numbers.items()
    assert mixtures.find("q4_k") == "q4_k_m" and set(CODES) <= {*mixtures.MIXTURES, *mixtures.ALIASES}


def test_a_mixture_is_written_and_reported(tmp_path, tensors):
    keys = gpt2_keys(32, 256, 2) | character_keys([chr(0x100 + i) for i in range(48)])
    source = write_gguf(tmp_path / "f.gguf", tensors, keys)
    report = requantize(source, tmp_path / "q.gguf", "q4_k")
    with _lib.File(report.path) as file:
        types = {name: info.type for name, info in file.tensors.items()}
        assert file.keys["general.file_type"] == 15
    assert types["token_embd.weight"] == types["blk.1.ffn_down.weight"] == "q6_k"
    assert types["blk.0.ffn_up.weight"] == types["blk.0.ffn_down.weight"] == "q4_k" and not report.notes
    assert types["position_embd.weight"] == "f16" and types["blk.0.attn_norm.weight"] == "f32"
    with pygpt.Model(source) as original, pygpt.Model(report.path) as model:
        assert error(original.logits([1, 2, 3]), model.logits([1, 2, 3])) < 0.3


def test_narrow_rows_are_reported(tmp_path):
    tensors = gpt2_tensors(48, 16, 64, 1, np.random.default_rng(9))
    source = write_gguf(tmp_path / "f.gguf", tensors, gpt2_keys(16, 64, 1) | character_keys("abc"))
    notes = requantize(source, tmp_path / "q.gguf", "q4_k_m").notes
    assert notes == [
        "1 matrix is q8_0 instead: rows of 64 are no multiple of q6_k's 256.",
        "2 matrices are q5_0 instead: rows of 64 are no multiple of q4_k's 256.",
    ]
