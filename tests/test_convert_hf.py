"""Folders of Hugging Face become GGUF files that compute what transformers computes, with the right vocabulary."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "transformers", "sentencepiece", "safetensors", "google.protobuf"):
    pytest.importorskip(package, reason=f"{package} writes the folders that are converted here: pip install {package}")

import torch  # noqa: E402
from pygpt.convert import convert_checkpoint  # noqa: E402
from reference.hf_folder import (  # noqa: E402
    GPT2_SIZES,
    LLAMA3,
    SIZES,
    add_tokenizer,
    byte_level,
    edit_json,
    logits,
    make_folder,
    make_model,
    sentencepiece_model,
)
from safetensors.torch import load_file, save_file  # noqa: E402
from test_convert_nanogpt import File, shared  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers  # noqa: E402

import pygpt  # noqa: E402
from pygpt._lib import File as OpenFile  # noqa: E402
from pygpt.chat import Format  # noqa: E402

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 2048}
LONG = {"max_position_embeddings": 8192}  # YaRN's ramp needs room
SLIDING = {"use_sliding_window": True, "sliding_window": 8}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
NAMES = {  # transformers' names, GGUF's names
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "wte": "token_embd",
    "wpe": "position_embd",
    "norm": "output_norm",
    "ln_f": "output_norm",
    "lm_head": "output",
}


def converted_file(folder, *arguments, **options):
    """A conversion without trials on text, which tests/test_proof.py is about."""
    return convert_checkpoint(folder, *arguments, **{"proof": False, **options})


def converted(folder, type="f32", **options):
    report = converted_file(folder, type=type, **options)
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]
    return File(report.path), report


def refused(folder, match, error=pygpt.Error, **options):
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=match) as caught:
        converted_file(folder, **options)
    sentence = str(caught.value)
    assert isinstance(caught.value, pygpt.Error) and "\n" not in sentence and len(sentence) < 600, sentence
    assert str(folder) in sentence or options, sentence
    assert sorted(folder.iterdir()) == before, "something was left behind"
    return sentence


# ---- what is computed

PARITY = {
    "llama": ("llama", {}),
    "llama with tied head": ("llama", {"tie_word_embeddings": True}),
    "llama without groups, wide heads": ("llama", {"num_key_value_heads": 4, "head_dim": 24}),
    "llama, one head of keys": ("llama", {"num_key_value_heads": 1}),
    "llama with all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", {"rope_parameters": YARN} | LONG),
    "llama, yarn with its own factor": ("llama", {"rope_parameters": YARN | {"attention_factor": 0.7}} | LONG),
    "llama, yarn with mscale": ("llama", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}} | LONG),
    "llama, dynamic": ("llama", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama, another epsilon and base": ("llama", {"rms_norm_eps": 1e-2, "rope_parameters": {"rope_theta": 77.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN} | LONG),
    "qwen2, a window in some layers": ("qwen2", SLIDING | {"sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "gpt2, narrow and untied": ("gpt2", {"n_inner": 96, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}),
    "gpt2 with the exact GELU": ("gpt2", {"activation_function": "gelu"}),
}  # fmt: skip


@pytest.mark.parametrize("case", PARITY)
def test_pygpt_computes_what_transformers_computes(tmp_path, case):
    kind, changes = PARITY[case]
    model = make_folder(tmp_path / "m", kind, **changes)
    report = converted_file(tmp_path / "m", type="f32")
    ids = np.random.default_rng(1).integers(0, 320, 48).tolist()
    with pygpt.Model(report.path) as own:
        ids = ids[: own.info.n_ctx]
        assert np.abs(own.logits(ids) - logits(model, ids)).max() < 1e-4
    assert "window" not in case or len(ids) == 16


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_quantized_model_computes_about_the_same(tmp_path, kind):
    model = make_folder(tmp_path / "m", kind)
    report = converted_file(tmp_path / "m")
    assert report.type == "q8_0" and report.types["q8_0"] > 8
    ids = list(range(3, 40))
    with pygpt.Model(report.path) as own:
        expected = logits(model, ids)
        assert np.std(own.logits(ids) - expected) < 0.1 * expected.std()


def test_a_window_shortens_the_context_because_other_engines_look_further(tmp_path):
    make_folder(tmp_path / "m", "mistral", sliding_window=16)
    file, report = converted(tmp_path / "m")
    assert file.keys["llama.context_length"] == file.keys["llama.attention.sliding_window"] == 16
    assert "The context is 16 instead of 64: 2 of 2 layers look back only that far" in report.assumptions[0]
    for size in (64, 100, None):
        edit_json(tmp_path / "m/config.json", sliding_window=size)
        file, report = converted(tmp_path / "m")
        assert file.keys["llama.context_length"] == 64 and "llama.attention.sliding_window" not in file.keys
        assert not report.assumptions
    edit_json(tmp_path / "m/config.json", sliding_window=..., max_position_embeddings=5000)  # transformers takes 4096
    assert converted(tmp_path / "m")[0].keys["llama.context_length"] == 4096


def test_a_window_that_is_switched_off_is_none(tmp_path):
    make_folder(tmp_path / "m", "qwen2")
    edit_json(tmp_path / "m/config.json", sliding_window=16, use_sliding_window=False)
    assert converted(tmp_path / "m")[0].keys["qwen2.context_length"] == 64
    edit_json(tmp_path / "m/config.json", use_sliding_window=True, layer_types=["full_attention"] * 2)
    assert converted(tmp_path / "m")[0].keys["qwen2.context_length"] == 64
    edit_json(tmp_path / "m/config.json", layer_types=..., max_window_layers=1)
    file, report = converted(tmp_path / "m")
    assert file.keys["qwen2.context_length"] == 16 and "1 of 2 layers" in report.assumptions[0]
    assert "qwen2.attention.sliding_window" not in file.keys  # it would speak of all layers
    make_folder(tmp_path / "l", "llama")
    edit_json(tmp_path / "l/config.json", sliding_window=16)  # which Llama does not know
    assert converted(tmp_path / "l")[0].keys["llama.context_length"] == 64


# ---- weights


def gguf_name(name):
    name = name.removeprefix("model.").removeprefix("transformer.")
    stem, _, kind = name.rpartition(".")
    if stem.startswith(("layers.", "h.")):
        _, i, stem = stem.split(".", 2)
        return f"blk.{i}.{NAMES[stem]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def turned(name, w, n_head):
    """A row of the first half of each head, its partner from the second, and so on."""
    if not gguf_name(name).rpartition(".")[0].endswith(("attn_q", "attn_k")):
        return w
    rows = [h * 16 + half * 8 + i for h in range(w.shape[0] // 16) for i in range(8) for half in (0, 1)]
    return w[rows]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_every_number_arrives(tmp_path, kind):
    settings = {} if kind == "gpt2" else {"head_dim": 16}
    model = make_folder(tmp_path / "m", kind, tie_word_embeddings=False, **settings)
    file, report = converted(tmp_path / "m")
    n_params = 0
    for name, w in model.state_dict().items():
        w = w.numpy()
        if kind in ("llama", "mistral"):
            w = turned(name, w, 4)
        if kind == "gpt2" and w.ndim == 2 and ".h." in name:
            w = w.T
        assert np.array_equal(file.arrays.pop(gguf_name(name)), w), name
        n_params += w.size
    assert not file.arrays and report.n_params == n_params


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_read(tmp_path, dtype):
    model = make_folder(tmp_path / "m", "qwen2").to(dtype)
    model.save_pretrained(tmp_path / "m")
    file, _ = converted(tmp_path / "m")
    for name, w in model.state_dict().items():
        assert np.array_equal(file.arrays[gguf_name(name)], w.float().numpy())


def test_shards_are_one_model(tmp_path):
    make_folder(tmp_path / "one" / "m", "llama")
    make_folder(tmp_path / "many" / "m", "llama", shards="30kB")
    assert len(list((tmp_path / "many" / "m").glob("model-*.safetensors"))) > 5
    for part in ("one", "many"):
        converted_file(tmp_path / part / "m")
    assert (tmp_path / "one/m/model.gguf").read_bytes() == (tmp_path / "many/m/model.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pytorch_model_bin_is_read_too(tmp_path, kind):
    model = make_folder(tmp_path / "m", kind, tie_word_embeddings=True)
    expected = converted_file(tmp_path / "m", tmp_path / "expected.gguf", "f32")
    (tmp_path / "m/model.safetensors").unlink()
    weights = model.state_dict()
    assert "lm_head.weight" in weights
    torch.save(weights, tmp_path / "m/pytorch_model.bin")
    report = converted_file(tmp_path / "m", type="f32")
    assert Path(report.path).read_bytes() == Path(expected.path).read_bytes()
    places = {name: f"pytorch_model-{i % 2 + 1:05}-of-00002.bin" for i, name in enumerate(weights)}
    for shard in set(places.values()):
        torch.save({name: w for name, w in weights.items() if places[name] == shard}, tmp_path / "m" / shard)
    (tmp_path / "m/pytorch_model.bin").unlink()
    (tmp_path / "m/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    report = converted_file(tmp_path / "m", type="f32")
    assert Path(report.path).read_bytes() == Path(expected.path).read_bytes()


def test_a_transposed_matrix_in_pytorch_model_bin_is_read_as_it_looks(tmp_path):
    model = make_folder(tmp_path / "m", "llama")
    expected = converted(tmp_path / "m")[0].arrays
    (tmp_path / "m/model.safetensors").unlink()
    weights = {name: w.t().contiguous().t() if w.ndim == 2 else w for name, w in model.state_dict().items()}
    torch.save(weights, tmp_path / "m/pytorch_model.bin")
    for name, array in converted(tmp_path / "m")[0].arrays.items():
        assert np.array_equal(array, expected[name]), name


def test_names_may_lack_their_first_word(tmp_path):
    for kind in ("llama", "gpt2"):
        model = make_folder(tmp_path / kind, kind, tie_word_embeddings=True)
        expected = converted(tmp_path / kind)[0].arrays
        weights = {name.partition(".")[2]: w for name, w in model.state_dict().items() if name != "lm_head.weight"}
        save_file({name: w.clone() for name, w in weights.items()}, tmp_path / kind / "model.safetensors")
        for name, array in converted(tmp_path / kind)[0].arrays.items():
            assert np.array_equal(array, expected[name]), name


def test_a_tied_head_that_is_saved_is_dropped_and_another_one_is_refused(tmp_path):
    make_folder(tmp_path / "m", "llama", tie_word_embeddings=True)
    path = tmp_path / "m/model.safetensors"
    weights = load_file(path)
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, path)
    assert "output.weight" not in converted(tmp_path / "m")[0].arrays
    head[3, 5] += 1
    save_file(weights | {"lm_head.weight": head}, path)
    refused(tmp_path / "m", "says tie_word_embeddings, but lm_head.weight is another matrix")
    edit_json(tmp_path / "m/config.json", tie_word_embeddings=False)
    assert np.array_equal(converted(tmp_path / "m")[0].arrays["output.weight"], head.numpy())


def test_buffers_that_follow_from_the_configuration_are_dropped(tmp_path):
    for kind, name in (
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.1.attn.bias"),
    ):
        make_folder(tmp_path / kind, kind)
        path = tmp_path / kind / "model.safetensors"
        save_file(load_file(path) | {name: torch.ones(8)}, path)
        converted(tmp_path / kind)


# ---- keys


def keys_of(file):
    return {
        name: value
        for name, value in file.keys.items()
        if not name.startswith(("GGUF.", "tokenizer.", "pygpt.source", "general.file_type", "general.quant"))
    }


def test_the_keys_are_those_of_llama_cpp(tmp_path):
    make_folder(tmp_path / "Tiny-Llama", "llama")
    assert keys_of(converted(tmp_path / "Tiny-Llama")[0]) == {
        "general.architecture": "llama",
        "general.name": "Tiny-Llama",
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "llama.vocab_size": 320,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
    }
    make_folder(tmp_path / "q", "qwen3", head_dim=32, rope_parameters=YARN | {"attention_factor": 0.5}, **LONG)
    keys = keys_of(converted(tmp_path / "q")[0])
    assert keys["general.architecture"] == "qwen3" and keys["qwen3.rope.dimension_count"] == 32
    assert keys["qwen3.attention.key_length"] == keys["qwen3.attention.value_length"] == 32
    assert {name.rpartition(".")[2]: value for name, value in keys.items() if "scaling" in name} == {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 2048,
        "attn_factor": np.float32(0.5 / (0.1 * np.log(4) + 1)),
    }
    make_folder(tmp_path / "g", "gpt2", n_inner=96, activation_function="gelu")
    assert keys_of(converted(tmp_path / "g")[0]) == {
        "general.architecture": "gpt2",
        "general.name": "g",
        "gpt2.context_length": 64,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 96,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
        "gpt2.vocab_size": 320,
        "pygpt.activation": "gelu_erf",
    }


def test_llama_3s_scaling_is_a_tensor_of_factors(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = make_folder(tmp_path / "m", "llama", rope_parameters=LLAMA3_ROPE)
    factors = converted(tmp_path / "m")[0].arrays["rope_freqs.weight"]
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    expected = plain / ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")[0].numpy()
    assert np.allclose(factors, expected, rtol=1e-5)
    assert factors[0] == 1 and 1 < factors[1] < factors[2] < 8 and factors[3] == 8


def test_the_older_spelling_of_rope_means_the_same(tmp_path):
    make_folder(tmp_path / "m", "llama", rope_parameters=LLAMA3_ROPE)
    new = converted(tmp_path / "m")[0]
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    edit_json(
        tmp_path / "m/config.json", rope_parameters=..., dtype=..., torch_dtype="float32",
        rope_theta=10000.0, rope_scaling=scaling,
    )  # fmt: skip
    old = converted(tmp_path / "m")[0]
    assert old.keys == new.keys and np.array_equal(old.arrays["rope_freqs.weight"], new.arrays["rope_freqs.weight"])
    edit_json(tmp_path / "m/config.json", rope_scaling={"type": "linear", "factor": 2})
    assert converted(tmp_path / "m")[0].keys["llama.rope.scaling.factor"] == 2.0
    edit_json(tmp_path / "m/config.json", rope_scaling=None, rope_theta=...)
    keys = converted(tmp_path / "m")[0].keys
    assert keys["llama.rope.freq_base"] == 10000.0 and "llama.rope.scaling.type" not in keys


def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path):
    make_folder(tmp_path / "l", "llama", num_key_value_heads=4, max_position_embeddings=2048)
    expected = converted(tmp_path / "l")[0].keys
    left_out = ("architectures", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
                "rope_parameters", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings")  # fmt: skip
    edit_json(tmp_path / "l/config.json", **dict.fromkeys(left_out, ...))
    assert converted(tmp_path / "l")[0].keys == expected
    make_folder(tmp_path / "q", "qwen3", head_dim=128, tie_word_embeddings=False)
    edit_json(tmp_path / "q/config.json", head_dim=...)
    assert converted(tmp_path / "q")[0].keys["qwen3.attention.key_length"] == 128
    make_folder(tmp_path / "g", "gpt2")
    edit_json(tmp_path / "g/config.json", tie_word_embeddings=..., n_inner=..., activation_function=...)
    assert converted(tmp_path / "g")[0].keys["pygpt.activation"] == "gelu_tanh"


# ---- the folder


def test_a_file_of_the_folder_means_the_folder(tmp_path):
    make_folder(tmp_path / "m", "llama", shards="30kB")
    shard = next((tmp_path / "m").glob("model-*.safetensors")).name
    for name in ("", "config.json", shard, "model.safetensors.index.json"):
        report = converted_file(tmp_path / "m" / name)
        assert report.path == str(tmp_path / "m/model.gguf") and report.source == "Hugging Face"
        assert report.recognised_by == "LlamaForCausalLM in config.json"
        Path(report.path).unlink()


def test_the_report_is_a_few_lines_that_say_it_all(tmp_path, pygpt):
    make_folder(tmp_path / "m", "llama", tokenizer="llama3", rope_parameters=LLAMA3_ROPE)
    done = pygpt("convert", tmp_path / "m", "--type", "f16", "--no-proof")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == (
        "Hugging Face (by LlamaForCausalLM in config.json): 2 layers, 4 heads (2 for keys and values), 64 wide, "
        "context 64, RoPE 10000 scaled by llama3, a head of its own"
    )
    assert lines[1] == "vocabulary: byte-level BPE (llama-bpe), 300 tokens and 20 ids of padding, a chat template"
    assert lines[2].startswith(f"{tmp_path / 'm/model.gguf'}: 102.72 k parameters in ") and len(lines) == 3


def test_an_output_that_is_an_input_is_refused(tmp_path):
    make_folder(tmp_path / "m", "llama", shards="30kB")
    for path in [*(tmp_path / "m").glob("model*"), tmp_path / "m/config.json"]:
        before = path.read_bytes()
        refused(tmp_path / "m", "is an input too", ValueError, out=path)
        assert path.read_bytes() == before


def test_options_for_nanogpt_are_refused(tmp_path):
    make_folder(tmp_path / "m", "gpt2")
    for options in ({"meta": "meta.pkl"}, {"gelu": "erf"}, {"n_head": 3}):
        refused(tmp_path / "m", "is not for a folder of Hugging Face", ValueError, **options)


def test_a_model_of_the_hubs_cache_has_its_name(tmp_path):
    folder = tmp_path / "models--karpathy--tiny-llama/snapshots/0123abc"
    make_folder(folder, "llama")
    assert converted(folder)[0].keys["general.name"] == "tiny-llama"


# ---- vocabulary


def test_byte_level_bpe_arrives(tmp_path):
    make_folder(tmp_path / "m", "llama")
    keys = converted(tmp_path / "m")[0].keys
    own = byte_level()
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2"
    tokens = [own.id_to_token(id) for id in range(300)] + [f"[PAD{id}]" for id in range(300, 320)]
    assert keys["tokenizer.ggml.tokens"] == tokens
    assert keys["tokenizer.ggml.token_type"] == [3] * 3 + [1] * 297 + [5] * 20
    merges = json.loads(own.to_str())["model"]["merges"]
    assert keys["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")] == [0, 2, 0]
    assert keys["tokenizer.ggml.add_bos_token"] is False and keys["tokenizer.ggml.add_eos_token"] is False
    assert keys["tokenizer.chat_template"].startswith("{% for m in messages %}")


def test_merges_of_both_spellings_are_the_same(tmp_path):
    make_folder(tmp_path / "m", "llama")
    expected = converted(tmp_path / "m")[0].keys
    path = tmp_path / "m/tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["merges"] = [" ".join(merge) for merge in value["model"]["merges"]]
    del value["model"]["type"]
    path.write_text(json.dumps(value))
    assert converted(tmp_path / "m")[0].keys == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2"])
def test_split_rules_have_their_names(tmp_path, kind):
    make_folder(tmp_path / "m", "llama", tokenizer=kind)
    keys = converted(tmp_path / "m")[0].keys
    assert keys["tokenizer.ggml.pre"] == {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2"}[kind]
    assert keys["tokenizer.ggml.add_bos_token"] is (kind == "llama3") and "pygpt.tokenizer.split" not in keys


def with_tokenizer(folder, tokenizer):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_split_rule_without_a_name_is_stored_as_it_is(tmp_path):
    make_folder(tmp_path / "m", "llama")
    own = r"\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]+"
    digits, split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(own), "isolated")
    plain, words = (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex) for regex in (False, True))
    tokenizer = byte_level()
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for steps, expected in (
        ([split, plain], [own]),
        ([split, words], [own, gpt2]),
        ([plain], [r"[\s\S]+"]),
        ([pre_tokenizers.Digits(), digits, split, plain], [r"\p{N}+", r"\p{N}", own]),
    ):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        file, report = converted(with_tokenizer(tmp_path / "m", tokenizer))
        assert file.keys["tokenizer.ggml.pre"] == "pygpt-split"
        assert file.keys["pygpt.tokenizer.split"] == expected
        assert "splits text by a rule of its own" in report.assumptions[0]
    for steps, name in (([digits, words], "starcoder"), ([pre_tokenizers.Sequence([words])], "gpt-2")):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        assert converted(with_tokenizer(tmp_path / "m", tokenizer))[0].keys["tokenizer.ggml.pre"] == name


def test_a_rule_is_named_only_if_words_are_kept_or_cut_as_the_name_says(tmp_path):
    make_folder(tmp_path / "m", "llama")
    for ignore_merges, name in ((True, "llama-bpe"), (False, "smaug-bpe")):
        folder = with_tokenizer(tmp_path / "m", byte_level(LLAMA3, ignore_merges))
        assert converted(folder)[0].keys["tokenizer.ggml.pre"] == name
    keys = converted(with_tokenizer(tmp_path / "m", byte_level(ignore_merges=True)))[0].keys
    assert keys["tokenizer.ggml.pre"] == "pygpt-split" and keys["pygpt.tokenizer.ignore_merges"] is True


def test_added_tokens_have_their_types(tmp_path):
    make_folder(tmp_path / "m", "llama")
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("<|looks special|>", special=False)])
    tokenizer.add_special_tokens([AddedToken("<special>", special=True)])
    keys = converted(with_tokenizer(tmp_path / "m", tokenizer))[0].keys
    assert keys["tokenizer.ggml.tokens"][300:304] == ["<tool>", "<|looks special|>", "<special>", "[PAD303]"]
    assert keys["tokenizer.ggml.token_type"][300:304] == [4, 3, 3, 5]


def test_gaps_in_the_vocabulary_are_padding(tmp_path):
    make_folder(tmp_path / "m", "llama")
    path = tmp_path / "m/tokenizer.json"
    value = json.loads(path.read_text())
    moved = next(text for text, id in value["model"]["vocab"].items() if id == 299)
    value["model"]["vocab"][moved] = 310
    path.write_text(json.dumps(value))
    keys = converted(tmp_path / "m")[0].keys
    assert keys["tokenizer.ggml.tokens"][298:312].count(moved) == 1 and keys["tokenizer.ggml.tokens"][310] == moved
    assert keys["tokenizer.ggml.token_type"][299:312] == [5] * 11 + [1, 5]


def test_nfc_is_kept_for_those_who_can_do_it(tmp_path):
    make_folder(tmp_path / "m", "llama")
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    assert converted(with_tokenizer(tmp_path / "m", tokenizer))[0].keys["pygpt.tokenizer.normalizer"] == "NFC"
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    refused(with_tokenizer(tmp_path / "m", tokenizer), "changes text by 'Lowercase' before it splits it")


def test_special_tokens_are_found_wherever_they_stand(tmp_path):
    make_folder(tmp_path / "m", "llama")
    settings, config = tmp_path / "m/tokenizer_config.json", tmp_path / "m/config.json"
    generation = tmp_path / "m/generation_config.json"

    def ids():
        keys = converted(tmp_path / "m")[0].keys
        found = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
        assert "tokenizer.ggml.unknown_token_id" not in keys
        return {name: id for name, id in found.items() if id is not None}

    edit_json(settings, bos_token={"content": "<|im_start|>"}, pad_token="<|im_end|>", unk_token="no such token")
    assert ids() == {"bos": 1, "eos": 2, "padding": 2, "eot": 0}
    edit_json(settings, bos_token=None, eos_token=..., pad_token=...)
    edit_json(config, bos_token_id=5, eos_token_id=7, pad_token_id=-1)
    edit_json(generation, eos_token_id=7)
    assert ids() == {"bos": 5, "eos": 7}
    edit_json(config, eos_token_id=[6, 0, 2], bos_token_id=400)
    edit_json(generation, eos_token_id=[2, 7])
    assert ids() == {"eos": 6, "eot": 0, "eom": 2}
    generation.unlink()
    edit_json(config, eos_token_id=None)
    (tmp_path / "m/special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "bos_token": {"content": "a"}}')
    assert ids()["eos"] == 2 and ids()["bos"] == byte_level().token_to_id("a")


def test_the_start_token_is_added_as_the_tokenizer_says(tmp_path):
    make_folder(tmp_path / "m", "llama", tokenizer="llama3")
    settings = tmp_path / "m/tokenizer_config.json"
    assert converted(tmp_path / "m")[0].keys["tokenizer.ggml.add_bos_token"] is True
    edit_json(settings, add_bos_token=False, add_eos_token=True)
    keys = converted(tmp_path / "m")[0].keys
    assert keys["tokenizer.ggml.add_bos_token"] is False and keys["tokenizer.ggml.add_eos_token"] is True
    edit_json(settings, add_bos_token=True, bos_token=None)
    edit_json(tmp_path / "m/config.json", bos_token_id=None)
    assert converted(tmp_path / "m")[0].keys["tokenizer.ggml.add_bos_token"] is False


def test_chat_templates_are_kept(tmp_path):
    make_folder(tmp_path / "m", "llama")
    settings, jinja = tmp_path / "m/tokenizer_config.json", tmp_path / "m/chat_template.jinja"
    assert jinja.exists()
    edit_json(settings, chat_template="from tokenizer_config.json")
    jinja.write_text("from chat_template.jinja\n")
    assert converted(tmp_path / "m")[0].keys["tokenizer.chat_template"] == "from chat_template.jinja\n"
    jinja.unlink()
    assert converted(tmp_path / "m")[0].keys["tokenizer.chat_template"] == "from tokenizer_config.json"
    named = [{"name": "default", "template": "one"}, {"name": "Tool use", "template": "two"}]
    edit_json(settings, chat_template=named)
    keys = converted(tmp_path / "m")[0].keys
    assert keys["tokenizer.chat_template"] == "one" and keys["tokenizer.chat_template.tool_use"] == "two"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    edit_json(settings, chat_template=...)
    file, report = converted(tmp_path / "m")
    assert not [key for key in file.keys if "chat" in key] and "chat" not in report.vocabulary


SPM = {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("files", ["sentencepiece", "both", "converted"])
def test_sentencepieces_vocabulary_arrives(tmp_path, files):
    import sentencepiece

    make_folder(tmp_path / "m", "llama", tokenizer=files, **SPM)
    keys = converted(tmp_path / "m")[0].keys
    own = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.pre"] == "default"
    assert keys["tokenizer.ggml.tokens"] == [own.id_to_piece(id) for id in range(320)]
    assert keys["tokenizer.ggml.token_type"] == [2, 3, 3] + [6] * 256 + [1] * 61
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")] == [1, 2]
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.add_bos_token"] is (files == "sentencepiece")  # the others have a tokenizer.json
    pieces, scores = keys["tokenizer.ggml.tokens"][259:], keys["tokenizer.ggml.scores"][259:]
    expected = [own.get_score(id) for id in range(259, 320)]
    if files != "converted":
        assert scores == expected
    merged = [i for i, piece in enumerate(pieces) if len(piece) > 1]  # of the others no score is ever asked for
    by_score = sorted(merged, key=lambda i: -scores[i])
    assert by_score == sorted(merged, key=lambda i: -expected[i]) and len(by_score) > 20


def test_tokens_added_to_sentencepieces_are_found(tmp_path):
    make_folder(tmp_path / "m", "llama", tokenizer="sentencepiece", vocab_size=330, **SPM)
    (tmp_path / "m/added_tokens.json").write_text('{"<extra>": 320, "\u2581spaced": 321}')
    decoder = {"0": {"content": "<unk>", "special": True}, "322": {"content": "<chat>", "special": True}}
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    keys = converted(tmp_path / "m")[0].keys
    assert keys["tokenizer.ggml.tokens"][320:324] == ["<extra>", " spaced", "<chat>", "[PAD323]"]
    assert keys["tokenizer.ggml.token_type"][320:324] == [4, 4, 3, 5] and keys["tokenizer.ggml.token_type"][0] == 2


def test_what_sentencepiece_would_do_and_others_do_not_is_said(tmp_path):
    make_folder(tmp_path / "m", "llama", tokenizer="none", **SPM)
    path = tmp_path / "m/tokenizer.model"
    path.write_bytes(sentencepiece_model(normalization_rule_name="nmt_nfkc"))
    assert "normalization 'nmt_nfkc', which is not applied" in converted(tmp_path / "m")[1].assumptions[0]
    path.write_bytes(sentencepiece_model(byte_fallback=False, vocab_size=64))
    assert "no token for each byte" in converted(tmp_path / "m")[1].assumptions[0]
    path.write_bytes(sentencepiece_model(model_type="unigram", hard_vocab_limit=False))
    refused(tmp_path / "m", "tokenizer.model: the tokenizer is Unigram, and only BPE")
    path.write_bytes(sentencepiece_model(treat_whitespace_as_suffix=True))
    refused(tmp_path / "m", "tokenizer.model: the tokenizer joins spaces to the words before them")


PREPEND = [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
]
METASPACE = {"type": "Metaspace", "replacement": "\u2581"}
PREFIXES = {  # what tokenizer.json says: (normalizer, pre-tokenizer, add_space_prefix, our scheme)
    "legacy": ({"type": "Sequence", "normalizers": PREPEND}, None, True, None),
    "no prefix": (PREPEND[1], None, False, None),
    "first": (None, METASPACE | {"prepend_scheme": "first", "split": False}, True, "first"),
    "always": (None, METASPACE | {"prepend_scheme": "always", "split": False}, True, "always"),
    "never": (None, METASPACE | {"prepend_scheme": "never", "split": False}, False, None),
    "old": (None, METASPACE | {"add_prefix_space": True, "split": False}, True, "always"),
    "old, no prefix": (None, METASPACE | {"add_prefix_space": False, "split": False}, False, None),
    "both": (PREPEND[0], METASPACE | {"prepend_scheme": "first", "split": False}, True, None),
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_the_prefix_space_is_as_the_tokenizer_has_it(tmp_path, prefix):
    normalizer, pre_tokenizer, adds, scheme = prefix
    make_folder(tmp_path / "m", "llama", tokenizer="both", **SPM)
    edit_json(tmp_path / "m/tokenizer.json", normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    file, report = converted(tmp_path / "m")
    assert file.keys["tokenizer.ggml.add_space_prefix"] is adds
    assert file.keys.get("pygpt.tokenizer.space_prefix") == scheme
    if pre_tokenizer and not adds:  # which today's tokenizers no longer reads without this
        edit_json(tmp_path / "m/tokenizer.json", pre_tokenizer=pre_tokenizer | {"prepend_scheme": "never"})
    theirs, own = Tokenizer.from_file(str(tmp_path / "m/tokenizer.json")), pygpt.Tokenizer.from_file(report.path)
    assert_same_ids(own, lambda text: theirs.encode(text, add_special_tokens=False).ids)


def assert_same_ids(own, theirs, bits=("<s>", "</s>")):
    rng = random.Random(4)
    bits = [" ", "  ", "a man", "in", "truth", "\n", "\u2581", "\u4f60", ".", *bits]
    for _ in range(400):
        text = "".join(rng.choices(bits, k=rng.randrange(1, 9)))
        assert own.encode(text, add_special=False, parse_special=True) == theirs(text), text


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}], ids=str)
def test_the_prefix_space_of_tokenizer_model_is_that_of_transformers(tmp_path, settings):
    from transformers import AutoTokenizer

    make_folder(tmp_path / "m", "llama", tokenizer="sentencepiece", vocab_size=330, **SPM)
    added = {"320": {"content": "<u>", "rstrip": True}, "1": {"content": "<s>", "special": True}}
    settings = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added} | settings
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(settings))
    own = pygpt.Tokenizer.from_file(converted_file(tmp_path / "m").path)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert_same_ids(own, lambda text: theirs(text, add_special_tokens=False).input_ids, ["<s>", "</s>", "<u>"])


@pytest.mark.parametrize("kind", ["both", "gpt2"])
def test_flags_of_added_tokens_are_kept(tmp_path, kind):
    """As Phi 3 has them: <|user|> takes the line break behind it."""
    make_folder(tmp_path / "m", "llama", tokenizer=kind, vocab_size=330, **SPM)
    path = tmp_path / "m/tokenizer.json"
    n = Tokenizer.from_file(str(path)).get_vocab_size()
    flags = {n: {"rstrip": True}, n + 1: {"lstrip": True, "special": True}, n + 2: {"single_word": True}}
    off = dict.fromkeys(("special", "normalized", "lstrip", "rstrip", "single_word"), False)
    added = [off | {"id": id, "content": f"<|{id}|>"} | flags for id, flags in flags.items()]
    edit_json(path, added_tokens=[*tokenizer_of(tmp_path / "m")["added_tokens"], *added])
    file, report = converted(tmp_path / "m")
    kept = {name: file.keys[f"pygpt.tokenizer.{name}"] for name in ("lstrip", "rstrip", "single_word")}
    assert kept == {"rstrip": [n], "lstrip": [n + 1], "single_word": [n + 2]}
    theirs = Tokenizer.from_file(str(path))
    own = pygpt.Tokenizer.from_file(report.path)
    assert_same_ids(own, lambda text: theirs.encode(text, add_special_tokens=False).ids, map("<|{}|>".format, flags))


def test_what_becomes_of_unknown_characters_is_kept(tmp_path):
    make_folder(tmp_path / "m", "llama", tokenizer="converted", **SPM)
    value = tokenizer_of(tmp_path / "m")
    for fuses in (True, False):
        value["model"] |= {"fuse_unk": fuses, "byte_fallback": False, "unk_token": "<unk>"}
        (tmp_path / "m/tokenizer.json").write_text(json.dumps(value))
        file, report = converted(tmp_path / "m")
        assert file.keys.get("pygpt.tokenizer.fuse_unknown", True) is fuses
        theirs = Tokenizer.from_file(str(tmp_path / "m/tokenizer.json"))
        own = pygpt.Tokenizer.from_file(report.path)
        assert_same_ids(own, lambda text, theirs=theirs: theirs.encode(text, add_special_tokens=False).ids)


def test_tokens_that_are_normalized_before_they_are_found_are_named(tmp_path):
    make_folder(tmp_path / "m", "llama", tokenizer="converted", vocab_size=330, **SPM)
    value = tokenizer_of(tmp_path / "m")
    added = [*value["added_tokens"], value["added_tokens"][0] | {"id": 320, "content": "<u>", "normalized": True}]
    edit_json(tmp_path / "m/tokenizer.json", added_tokens=added)
    assert not converted(tmp_path / "m")[1].assumptions  # nothing is changed before
    legacy = {"type": "Sequence", "normalizers": PREPEND}
    edit_json(tmp_path / "m/tokenizer.json", normalizer=legacy, pre_tokenizer=None)
    (sentence,) = converted(tmp_path / "m")[1].assumptions
    assert sentence.startswith("Tokens like '<u>' are found wherever a text has them; transformers finds those that")
    assert Tokenizer.from_file(str(tmp_path / "m/tokenizer.json")).encode("a<u>").ids.count(320) == 0


def test_a_chat_of_transformers_5_gets_the_ids_of_its_chat_template(tmp_path):
    """Its Metaspace puts a space before the whole text only, so none behind a control token."""
    from transformers import LlamaTokenizer

    path = tmp_path / "m"
    make_folder(path, "llama", tokenizer="sentencepiece", vocab_size=323, max_position_embeddings=256, **SPM)
    theirs = LlamaTokenizer.from_pretrained(path)
    theirs.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    theirs.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    theirs.save_pretrained(path)
    (path / "tokenizer.model").unlink()
    talk = [("user", "a truth"), ("assistant", " in want of"), ("user", "a wife\n")]
    with pygpt.Model(converted_file(path, type="f32").path) as model:
        format = Format(model)
        ids = format.encode([format.message(role, content) for role, content in talk])
        messages = [{"role": role, "content": content} for role, content in talk]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert ids == expected


def test_gpt2_needs_no_tokenizer_json(tmp_path):
    """vocab.json and merges.txt, as of before 2020; or the vocabulary that everyone knows."""
    make_folder(tmp_path / "m", "gpt2", bos_token_id=0)
    expected = converted(tmp_path / "m")[0].keys
    value = json.loads((tmp_path / "m/tokenizer.json").read_text())
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "m" / name).unlink()
    (tmp_path / "m/vocab.json").write_text(json.dumps(value["model"]["vocab"]))
    merges = "".join(" ".join(merge) + "\n" for merge in value["model"]["merges"])
    (tmp_path / "m/merges.txt").write_text("#version: 0.2\n" + merges)
    keys = converted(tmp_path / "m")[0].keys
    for name in ("tokens", "merges", "model", "pre", "eos_token_id", "add_bos_token"):
        assert keys[f"tokenizer.ggml.{name}"] == expected[f"tokenizer.ggml.{name}"]
    assert keys["tokenizer.ggml.token_type"] == [3] + [1] * 299 + [5] * 20
    (tmp_path / "m/merges.txt").unlink()
    refused(tmp_path / "m", "merges.txt: cannot be read; it belongs to vocab.json")
    make_folder(tmp_path / "n", "gpt2", tokenizer="none", vocab_size=50257, n_embd=8, n_layer=1)
    report = converted_file(tmp_path / "n", type="f16")
    assert report.vocabulary == "GPT-2's BPE, 50257 tokens"
    assert report.assumptions[0].startswith("The vocabulary is GPT-2's BPE: the model has 50257 ids, and there is no")


TEXTS = (
    "It is a truth universally acknowledged, that in 1813 we'd paid 1234567s. 8d.!\n\n  And  so\ton\r\n",
    "h\u00e9llo w\u00f6rld, \u65e5\u672c\u8a9e \U0001f600 we'RE HERE",
    "\n\n\n   ",
    "e\u0301 decomposed",
    "",
)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "own rule", "own words", "nfc"])
def test_pygpt_splits_text_as_transformers_does(tmp_path, kind):
    from transformers import AutoTokenizer

    make_folder(tmp_path / "m", "llama", tokenizer=kind if kind in ("gpt2", "llama3", "qwen2") else "gpt2")
    if kind == "own words":
        with_tokenizer(tmp_path / "m", byte_level(ignore_merges=True))
    elif kind == "own rule":
        with_tokenizer(tmp_path / "m", byte_level(r"\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]+"))
    elif kind == "nfc":
        tokenizer = byte_level()
        tokenizer.normalizer = normalizers.NFC()
        with_tokenizer(tmp_path / "m", tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    own = pygpt.Tokenizer.from_file(converted_file(tmp_path / "m").path)
    for text in TEXTS:
        assert own.encode(text) == theirs(text).input_ids, text
        assert own.decode(own.encode(text, add_special=False)) == (text if kind != "nfc" else normalized(text))
    chat = "<|im_start|>user\nhello<|im_end|>"
    assert own.encode(chat, parse_special=True) == theirs(chat).input_ids


def normalized(text):
    return normalizers.NFC().normalize_str(text)


@pytest.mark.parametrize("files", ["sentencepiece", "converted"])
def test_pygpt_splits_text_as_sentencepiece_does(tmp_path, files):
    import sentencepiece

    make_folder(tmp_path / "m", "llama", tokenizer=files, **SPM)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    own = pygpt.Tokenizer.from_file(converted_file(tmp_path / "m").path)
    for text in TEXTS[:-1]:  # of an empty text sentencepiece makes nothing, and llama.cpp a space
        assert own.encode(text, add_special=False) == theirs.encode(text), text
        assert own.decode(theirs.encode(text)) == text


def test_llama_2s_scores_follow_from_its_merges(tmp_path):
    """tokenizer.json has no scores; made from the published vocabulary as transformers makes it, and split again."""
    with OpenFile(shared("vocab/llama-spm.gguf")) as file:
        tokens, scores = (file.keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores"))
    make_folder(tmp_path / "m", "llama", tokenizer="both", vocab_size=len(tokens), **SPM)
    (tmp_path / "m/tokenizer.model").unlink()
    place = {text: id for id, text in enumerate(tokens)}
    splits = [(text[:i], text[i:], scores[id]) for text, id in place.items() for i in range(1, len(text))]
    merges = [split for split in splits if split[0] in place and split[1] in place]
    merges.sort(key=lambda split: (-split[2], place[split[0]], place[split[1]]))
    value = tokenizer_of(tmp_path / "m")
    value["model"] |= {"vocab": place, "merges": [[left, right] for left, right, _ in merges]}
    value |= {"normalizer": {"type": "Sequence", "normalizers": PREPEND}, "pre_tokenizer": None}  # as it is published
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(value))
    own = pygpt.Tokenizer.from_file(converted_file(tmp_path / "m").path)
    texts = shared("vocab/llama-spm.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = [list(map(int, line.split())) for line in shared("vocab/llama-spm.out").read_text().splitlines()]
    assert [own.encode(text, add_special=False) for text in texts[: len(expected)]] == expected


# ---- what cannot be


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, to be copied."""
    root = tmp_path_factory.mktemp("folders")
    for kind in ("llama", "mistral", "qwen2", "qwen3", "gpt2"):
        make_folder(root / kind, kind)
    make_folder(root / "shards", "llama", shards="60kB")
    make_folder(root / "sentencepiece", "llama", tokenizer="both", **SPM)
    return root


@pytest.fixture
def folder(folders, tmp_path):
    def copy(kind="llama"):
        return Path(shutil.copytree(folders / kind, tmp_path / "m", dirs_exist_ok=True))

    return copy


CONFIGS = [
    ({"architectures": ["MixtralForCausalLM"]}, "'MixtralForCausalLM', a mixture of experts, cannot be"),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, "'Qwen3MoeForCausalLM', a mixture of experts,"),
    ({"architectures": ["OddForCausalLM"], "num_local_experts": 8}, "'OddForCausalLM', a mixture of experts,"),
    ({"architectures": ["Phi3ForCausalLM"]}, "'Phi3ForCausalLM' cannot be converted yet; supported are Llama"),
    ({"architectures": ["T5Model"], "is_encoder_decoder": True}, "'T5Model', an encoder with a decoder,"),
    ({"architectures": ..., "model_type": "gemma2"}, "'gemma2'"),
    ({"architectures": ..., "model_type": ...}, "the name of an architecture"),
    ({"architectures": "LlamaForCausalLM"}, "the name of an architecture"),
    ({"architectures": [None]}, "the name of an architecture"),
    ({"model_type": "phi3"}, "names the architecture LlamaForCausalLM but the model_type 'phi3'"),
    ({"quantization_config": {"quant_method": "gptq"}}, "weights are quantized already"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "code of its own"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"hidden_act": ["silu"]}, "hidden_act to be a name, found a list"),
    ({"hidden_size": 128}, "embed_tokens.weight to have shape \\[320, 128\\] by config.json, found \\[320, 64\\]"),
    ({"hidden_size": "64"}, "hidden_size to be a whole number .* found '64'"),
    ({"hidden_size": ...}, "hidden_size .* found nothing"),
    ({"vocab_size": 321}, "shape \\[321, 64\\]"),
    ({"num_hidden_layers": 3}, "expected a tensor model.layers.2.input_layernorm.weight by config.json, found none"),
    ({"num_hidden_layers": 1}, "and nothing else, found 'model.layers.1"),
    ({"num_hidden_layers": 0}, "num_hidden_layers .* found 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers .* found True"),
    ({"num_attention_heads": 3}, "3 heads cannot share 2"),
    ({"num_attention_heads": 8}, "q_proj.weight to have shape \\[128, 64\\]"),
    ({"num_key_value_heads": 4}, "k_proj.weight to have shape \\[64, 64\\]"),
    ({"head_dim": 15}, "even width"),
    ({"intermediate_size": 100}, "gate_proj.weight to have shape \\[100, 64\\]"),
    ({"attention_bias": True}, "expected a tensor .*q_proj.bias"),
    ({"attention_bias": "yes"}, "attention_bias to be true or false"),
    ({"mlp_bias": True}, "expected a tensor .*gate_proj.bias"),
    ({"tie_word_embeddings": True}, "lm_head.weight is another matrix"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps .* found nan"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps .* found '1e-6'"),
    ({"max_position_embeddings": 1 << 40}, "max_position_embeddings"),
    ({"partial_rotary_factor": 0.5}, "a part of each head only"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "a part of each head only"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2}}, "RoPE is scaled by 'longrope'"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "RoPE is scaled by a list"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs from layer to layer"),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_theta .* found -1"),
    ({"rope_parameters": {"rope_type": "linear"}}, "RoPE: expected factor .* found nothing"),
    ({"rope_parameters": LINEAR | {"factor": 0.5}}, "factor .* found 0.5"),
    ({"rope_parameters": YARN | {"beta_fast": 16}}, "a ramp of its own"),
    ({"rope_parameters": YARN | {"truncate": False}}, "a ramp of its own"),
    ({"rope_parameters": YARN, "original_max_position_embeddings": 5}, "stands there twice, as 5 and 2048"),
    ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4.0}}, "low_freq_factor 4 to be below high_freq_factor 4"),
    ({"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": "x"}}, "original_max_position_embeddings"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "match"), CONFIGS, ids=[str(changes)[:60] for changes, _ in CONFIGS])
def test_a_config_that_cannot_be_is_refused(folder, changes, match):
    path = folder()
    edit_json(path / "config.json", **changes)
    refused(path, match)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("qwen3", {"attention_bias": True}, "biases in the attention"),
        ("qwen2", {"rope_parameters": LLAMA3_ROPE}, "scaled as Llama 3's in the architecture qwen2"),
        ("qwen2", SLIDING | {"layer_types": ["odd"] * 2}, "layer_types are not 2"),
        ("qwen2", SLIDING | {"layer_types": []}, "layer_types are not 2"),
        ("qwen2", SLIDING | {"sliding_window": -8}, "sliding_window .* found -8"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
        ("gpt2", {"n_head": 5}, "n_embd 64 is no multiple of n_head 5"),
        ("gpt2", {"n_positions": 65}, "wpe.weight to have shape \\[65, 64\\]"),
        ("gpt2", {"n_inner": 96}, "c_fc.weight to have shape \\[64, 96\\] by config.json, found \\[64, 256\\]"),
    ],
)
def test_a_config_of_another_architecture_that_cannot_be_is_refused(folder, kind, changes, match):
    path = folder(kind)
    edit_json(path / "config.json", **changes)
    refused(path, match)


def test_files_that_are_missing_are_named(folder):
    path = folder("shards")
    shards = sorted(p.name for p in path.glob("model-*"))
    (path / shards[1]).unlink()
    refused(path, f"{shards[1]}: there is no such file; .* copy them too", FileNotFoundError)
    for name, match in (
        ("model.safetensors.index.json", "its weights in model.safetensors or pytorch_model.bin, found neither"),
        ("config.json", "m/ckpt.pt: there is no such file; name .* Hugging Face's config.json"),
    ):
        (path / name).unlink()
        refused(path, match, FileNotFoundError)
    path = folder("llama")
    (path / "config.json").unlink()
    with pytest.raises(pygpt.Error, match="model.safetensors: looks like a file of safetensors; .* the config.json"):
        converted_file(path / "model.safetensors")


def test_a_missing_tokenizer_is_named(folder):
    path = folder("llama")
    (path / "tokenizer.json").unlink()
    refused(path, "vocabulary of 320 ids in tokenizer.json or tokenizer.model, found neither", FileNotFoundError)


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        (None, "a weight_map with the file of each tensor, found none"),
        ({}, "a weight_map"),
        ([1], "a weight_map"),
        ({"a": "../other/model.safetensors"}, "names such as .* found '../other"),
        ({"a": "/etc/passwd"}, "found '/etc/passwd'"),
        ({"a": 5}, "found 5"),
        ({"a": "{shard}"}, "model-00001-of-.*.safetensors: expected the tensor 'a', found none"),
        ({"a": "pytorch_model.bin"}, "pytorch_model.bin: there is no such file"),
    ],
    ids=str,
)
def test_an_index_that_cannot_be_is_refused(folder, weight_map, match):
    path = folder("shards")
    shard = sorted(p.name for p in path.glob("model-*"))[0]
    if weight_map == {"a": "{shard}"}:
        weight_map = {"a": shard}
    edit_json(path / "model.safetensors.index.json", weight_map=weight_map)
    refused(path, match)


def test_a_tensor_in_two_shards_is_refused(folder):
    path = folder("shards")
    shards = sorted(path.glob("model-*"))
    weights = load_file(shards[1])
    save_file(weights | load_file(shards[0]), shards[1])
    refused(path, "which another file holds too")


def test_a_damaged_shard_is_named(folder):
    path = folder("shards")
    shard = sorted(path.glob("model-*"))[1]
    data = shard.read_bytes()
    for damaged, match in (
        (data[:-1], "expected .* bytes, found .*; it was cut short, copy it again"),
        (b"\xff" * 8 + data[8:], "a header of 18446744073709551615 bytes does not fit"),
        (data[:8] + b"[" + data[9:], "its header: cannot be read as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a header of .* bytes does not fit"),
    ):
        shard.write_bytes(damaged)
        assert shard.name in refused(path, match)


def test_weights_that_cannot_be_are_refused(folder):
    path = folder("llama")
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = load_file(path / "model.safetensors")
    for w, match in (
        (torch.full((64, 64), float("nan")), "q_proj.weight: expected finite numbers"),
        (torch.full((64, 64), 1e6), "q_proj.weight: holds 1e\\+06, more than q8_0 can"),
        (torch.zeros(64, 64, dtype=torch.int64), "floating-point numbers, found int64"),
        (torch.zeros(64, 64, dtype=torch.float8_e4m3fn), "floating-point numbers, found float8_e4m3"),
        (torch.zeros(64), "shape \\[64, 64\\] by config.json, found \\[64\\]"),
        (torch.zeros(0), "found \\[0\\]"),
    ):
        save_file(weights | {name: w}, path / "model.safetensors")
        with pytest.raises(pygpt.Error, match=match):
            converted_file(path)
    del weights[name]
    save_file(weights, path / "model.safetensors")
    refused(path, f"expected a tensor {name} by config.json, found none")


def test_layers_that_share_their_memory_cannot_fill_the_disk(folder):
    path = folder("llama")
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    layer = {name.removeprefix("model.layers.0."): w for name, w in weights.items() if ".layers.0." in name}
    weights |= {f"model.layers.{i}.{name}": w for i in range(200) for name, w in layer.items()}
    torch.save(weights, path / "pytorch_model.bin")
    edit_json(path / "config.json", num_hidden_layers=200)
    refused(path, "numbers by their shapes, but the files hold")


def nested(step, n):
    for _ in range(n):
        step = {"type": "Sequence", "pretokenizers": [step]}
    return step


def tokenizer_of(path):
    return json.loads((path / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t["model"]["vocab"].update({"new": 320}), "'new' has the id 320, but the model has only 320 ids"),
        (lambda t: t["model"]["vocab"].update({"new": 1 << 70}), "has the id"),
        (lambda t: t["model"]["vocab"].update({"new": -1}), "found 'new' with the id -1"),
        (lambda t: t["model"]["vocab"].update({"new": "5"}), "found 'new' with the id '5'"),
        (lambda t: t["model"]["vocab"].update({"[PAD310]": 305}), "'\\[PAD310\\]' has two ids, 305 and 310"),
        (lambda t: t["model"]["vocab"].update({"\ud800": 305}), "half of a surrogate pair"),
        (lambda t: t["model"].update(vocab=[]), "only BPE|a list of merges|is 'BPE'"),
        (lambda t: t["model"].update(vocab=None), "a model with a vocab, found none"),
        (lambda t: t.update(model=[]), "a model with a vocab, found none"),
        (lambda t: t["model"].update(type="WordPiece"), "the tokenizer is 'WordPiece', and only BPE"),
        (lambda t: t["model"].update(merges=None), "a list of merges, found None"),
        (lambda t: t["model"].update(merges=["a b c"]), "two tokens, found 'a b c'"),
        (lambda t: t["model"].update(merges=[["a", 5]]), "two tokens, found a list"),
        (lambda t: t["model"].update(merges=[["a b", "c"]]), "has a space in it, which GGUF cannot hold"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "has a end_of_word_suffix, '</w>'"),
        (lambda t: t.update(added_tokens=[{"id": 500, "content": "x"}]), "'x' has the id 500"),
        (lambda t: t.update(added_tokens={"a": 1}), "added_tokens to be a list"),
        (lambda t: t.update(added_tokens=[{"id": 5}]), "found None with the id 5"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "step \\(type 'ByteLevel', add_prefix_space True"),
        (lambda t: t.update(pre_tokenizer=None), "spells bytes as GPT-2 does, or spaces as sentencepiece"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "a step \\(type 'Whitespace'\\) that cannot"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "changes text by 'NFKC'"),
        (lambda t: t.update(pre_tokenizer=nested(t["pre_tokenizer"], 300)), "spells bytes as GPT-2 does|'Sequence'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_is_refused(folder, change, match):
    path = folder("llama")
    value = tokenizer_of(path)
    change(value)
    (path / "tokenizer.json").write_text(json.dumps(value))
    refused(path, match)


def test_a_split_that_drops_text_is_refused(folder):
    path = folder("llama")
    tokenizer = Tokenizer.from_str((path / "tokenizer.json").read_text())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for rule, behavior, invert, fits in (
        (LLAMA3, "isolated", False, True),
        (LLAMA3, "removed", True, True),  # as some tokenizers were converted from tiktoken
        (LLAMA3, "removed", False, False),
        (LLAMA3, "merged_with_next", False, False),
        (r"\p{N}", "removed", True, False),
        (r"\w+", "removed", True, False),
    ):
        split = pre_tokenizers.Split(Regex(rule), behavior, invert)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
        tokenizer.save(str(path / "tokenizer.json"))
        if fits:
            converted(path)
            (path / "model.gguf").unlink()
        else:
            refused(path, "a step \\(type 'Split', ")


def test_a_tokenizer_that_is_no_bpe_is_refused(folder):
    path = folder("llama")
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(path / "tokenizer.json"))
    refused(path, "the tokenizer is 'WordLevel', and only BPE can be converted")
    Tokenizer(models.Unigram([("a", 0.0)], 0)).save(str(path / "tokenizer.json"))
    refused(path, "the tokenizer is 'Unigram', and only BPE can be converted")


# ---- cost

PROGRAM = """
import re, sys, time
for name in ("torch", "transformers", "safetensors", "sentencepiece", "tokenizers", "jinja2"):
    sys.modules[name] = None
from pygpt.convert import convert_checkpoint
begin = time.perf_counter()
convert_checkpoint(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
seconds = time.perf_counter() - begin
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def cost(path, out, **options):
    """Seconds and megabytes of a conversion in a process of its own that has none of Hugging Face's packages."""
    options = {"proof": False, **options}
    output = subprocess.check_output([sys.executable, "-c", PROGRAM, str(path), str(out), repr(options)], text=True)
    return [float(n) for n in output.split()]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_memory_stays_far_below_the_size_of_the_file(tmp_path, kind):
    sizes = SIZES | {"vocab_size": 50000, "hidden_size": 640, "intermediate_size": 4096, "num_hidden_layers": 1}
    if kind == "gpt2":
        sizes = GPT2_SIZES | {"vocab_size": 50000, "n_embd": 640, "n_layer": 1, "tie_word_embeddings": False}
    model = make_model(kind, **sizes)
    model.save_pretrained(tmp_path / "m")
    add_tokenizer(tmp_path / "m", "gpt2")
    assert (tmp_path / "m/model.safetensors").stat().st_size > 250e6
    _, megabytes = cost(tmp_path / "m", tmp_path / "out.gguf")
    assert megabytes < 150


def test_a_large_vocabulary_is_no_burden(tmp_path):
    """As many tokens and merges as Llama 3 has."""
    make_folder(tmp_path / "m", "llama", vocab_size=128256)
    value = tokenizer_of(tmp_path / "m")
    vocab, merges = value["model"]["vocab"], value["model"]["merges"]
    for i in range(300, 128000):
        vocab[f"word{i}"] = i
        merges.append(["word", str(i)])
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(value))
    begin = time.perf_counter()
    seconds, megabytes = cost(tmp_path / "m", tmp_path / "out.gguf")
    assert seconds < 15 and megabytes < 300, (seconds, megabytes, time.perf_counter() - begin)
