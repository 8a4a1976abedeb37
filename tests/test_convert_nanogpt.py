"""nanoGPT's checkpoints become GGUF files that hold the same numbers and the right vocabulary."""

import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from fuzz_checkpoint import KINDS, Fuzz  # noqa: E402
from pygpt.convert import convert_checkpoint, gpt2_bpe  # noqa: E402
from reference.nanogpt_checkpoint import TEXT, checkpoint, random_weights, save, save_meta, write_zip  # noqa: E402

import pygpt  # noqa: E402
from pygpt import convert  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
NAMES = {  # nanoGPT's names, GGUF's names
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not here: it lies in ../shared/data where the project is developed")
    return path


def gguf_name(name):
    layer, _, rest = name.removeprefix("transformer.h.").partition(".")
    if layer.isdigit():
        stem, _, kind = rest.rpartition(".")
        return f"blk.{layer}.{NAMES[stem]}.{kind}"
    stems = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    stem, _, kind = name.removeprefix("transformer.").partition(".")
    return f"{stems.get(stem, 'output')}.{kind}"


class File:
    """A GGUF file, read by the gguf package: not by what is tested."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
        self.shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
        self.arrays = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}


def converted(tmp_path, value, type="f32", legacy=False, **options):
    path = save(tmp_path / "ckpt.pt", value, legacy)
    report = convert_checkpoint(path, type=type, **({"text": tmp_path / "text.txt"} | options))
    assert report.path == str(tmp_path / "ckpt.gguf")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file() and p.suffix in (".gguf", ".part")) == ["ckpt.gguf"]
    return File(report.path), report


def refused(path, match, error=pygpt.Error, **options):
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    with pytest.raises(error, match=match) as caught:
        convert_checkpoint(path, **options)
    sentence = str(caught.value)
    assert isinstance(caught.value, pygpt.Error) and "\n" not in sentence and len(sentence) < 600, sentence
    assert (sorted(path.parent.iterdir()) if path.parent.is_dir() else []) == before, "something was left behind"
    return sentence


# ---- weights


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
def test_every_number_arrives(tmp_path, bias, legacy):
    file, report = converted(tmp_path, checkpoint(bias), legacy=legacy)
    weights = random_weights(bias)
    for name, w in weights.items():
        assert np.array_equal(file.arrays.pop(gguf_name(name)), w), name
    zeros = [name for name, array in file.arrays.items() if not array.any()]
    assert sorted(zeros) == sorted(file.arrays) and all(name.endswith(".bias") for name in zeros)
    assert len(zeros) == (0 if bias else 2 * 6 + 1)
    assert report.n_params == sum(w.size for w in weights.values())


def test_the_keys_are_those_of_llama_cpp_and_our_own(tmp_path):
    file, _ = converted(tmp_path, checkpoint(), "q8_0")
    assert {name: value for name, value in file.keys.items() if not name.startswith("GGUF.")} == {
        "general.architecture": "gpt2",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
        "gpt2.vocab_size": 65,
        "pygpt.activation": "gelu_erf",
        "pygpt.source": "nanoGPT",
        "pygpt.assumptions": [file.keys["pygpt.assumptions"][0]],
        "tokenizer.ggml.model": "none",
        "pygpt.tokenizer.model": "character",
        "pygpt.tokenizer.characters": list(TEXT),
    }


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module._orig_mod.module."]
)
def test_prefixes_are_stripped(tmp_path, prefix):
    file, _ = converted(tmp_path, checkpoint(prefix=prefix))
    assert np.array_equal(file.arrays["token_embd.weight"], random_weights()["transformer.wte.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_read(tmp_path, dtype):
    value = checkpoint()
    value["model"] = {name: w.to(dtype) for name, w in value["model"].items()}
    file, _ = converted(tmp_path, value)
    for name, w in value["model"].items():
        if name != "lm_head.weight":
            assert np.array_equal(file.arrays[gguf_name(name)], w.float().numpy())


def test_a_transposed_view_is_written_as_it_looks(tmp_path):
    value = checkpoint()
    name = "transformer.h.1.mlp.c_fc.weight"
    value["model"][name] = value["model"][name].t().contiguous().t()
    assert not value["model"][name].is_contiguous()
    file, _ = converted(tmp_path, value)
    assert np.array_equal(file.arrays[gguf_name(name)], random_weights()[name])


def test_mask_buffers_are_dropped(tmp_path):
    value = checkpoint()
    for i in range(2):
        value["model"][f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    file, _ = converted(tmp_path, value)
    assert len(file.arrays) == 2 + 2 * 12 + 2


def test_a_head_is_written_only_when_it_is_another_matrix(tmp_path):
    value = checkpoint()
    value["model"]["lm_head.weight"] = value["model"]["transformer.wte.weight"].clone()
    assert "output.weight" not in converted(tmp_path, value)[0].arrays
    value["model"]["lm_head.weight"][3, 5] += 1
    file, report = converted(tmp_path, value)
    assert np.array_equal(file.arrays["output.weight"], value["model"]["lm_head.weight"].numpy())
    assert "a head of its own" in report.summary
    del value["model"]["lm_head.weight"]
    assert "output.weight" not in converted(tmp_path, value)[0].arrays


# ---- types


@pytest.mark.parametrize("type", TYPES)
def test_every_type_stores_close_numbers(tmp_path, type):
    file, report = converted(tmp_path, checkpoint(), type)
    expected = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11, "q4_0": 1 / 5}
    for name, w in random_weights().items():
        kind = file.types[gguf_name(name)]
        limit = expected[kind] * (np.abs(w) if kind in ("f16", "bf16") else np.abs(w).max(-1, keepdims=True))
        assert (np.abs(file.arrays[gguf_name(name)] - w) <= limit + 1e-7).all(), (name, kind)
    assert file.types["position_embd.weight"] == ("f32" if type == "f32" else "f16")
    assert file.types["token_embd.weight"] == ("q8_0" if type == "q4_0" else type)
    assert {file.types[name] for name, shape in file.shapes.items() if len(shape) == 1} == {"f32"}
    assert {t for name, t in file.types.items() if name.startswith("blk") and len(file.shapes[name]) == 2} == {type}
    assert file.keys["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[type]
    assert report.types == {t: list(file.types.values()).count(t) for t in file.types.values()} and not report.notes


def test_with_a_head_of_its_own_q4_0_spares_the_head(tmp_path):
    value = checkpoint()
    value["model"]["lm_head.weight"] = torch.ones(65, 64)
    file, _ = converted(tmp_path, value, "q4_0")
    assert file.types["output.weight"] == "q8_0" and file.types["token_embd.weight"] == "q4_0"


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_a_width_that_no_block_divides_gets_f16_and_one_line(tmp_path, type):
    file, report = converted(tmp_path, checkpoint(n_embd=48, n_head=3), type)
    assert file.types["token_embd.weight"] == file.types["blk.0.attn_qkv.weight"] == "f16"
    assert file.types["blk.0.ffn_down.weight"] == type  # 192 wide
    assert report.notes == ["7 matrices are f16 instead: rows of 48 are no multiple of 32."]
    for kind in ("f32", "f16", "bf16"):
        assert not converted(tmp_path, checkpoint(n_embd=48, n_head=3), kind)[1].notes


def test_unknown_types_are_refused_before_anything_is_read(tmp_path):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    for type in ("q9_9", "", "F32", "q7_k"):
        refused(path, "choose one of f32, f16, bf16, q8_0, q4_0", ValueError, type=type)


# ---- GELU


@pytest.mark.parametrize(
    ("change", "gelu"),
    [
        ({}, "erf"),
        ({"model_args": {"bias": None}}, "tanh"),
        ({"model_args": {"vocab_size": 50257}}, "tanh"),
        ({"model_args": {"vocab_size": 50257}, "config": {"init_from": "gpt2"}}, "erf"),
        ({"model_args": {"vocab_size": 50304}}, "erf"),
        ({"config": None}, "erf"),
    ],
    ids=["new", "no bias key", "50257 ids from scratch", "GPT-2 tuned", "50304 ids", "no config"],
)
def test_the_gelu_is_guessed_and_said(tmp_path, change, gelu):
    value = checkpoint(n_layer=1, n_embd=8, vocab_size=change.get("model_args", {}).get("vocab_size", 65))
    for key, changes in change.items():
        value[key] = {k: v for k, v in ((value[key] | changes) if changes else {}).items() if v is not None}
    path = save(tmp_path / "ckpt.pt", value)
    options = {} if value["model_args"]["vocab_size"] > 65 else {"text": tmp_path / "text.txt"}
    report = convert_checkpoint(path, proof=False, **options)
    assert f"GELU is {gelu}, as in nanoGPT" in report.assumptions[0]
    if options:  # 50257 tokens are slow to read
        file = File(report.path)
        assert file.keys["pygpt.activation"] == f"gelu_{gelu}" and file.keys["pygpt.assumptions"] == report.assumptions


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_the_gelu_can_be_chosen(tmp_path, gelu):
    file, report = converted(tmp_path, checkpoint(), gelu=gelu)
    assert file.keys["pygpt.activation"] == f"gelu_{gelu}" and "as the option says" in report.assumptions[0]


def test_there_is_no_third_gelu(tmp_path):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    refused(path, "choose erf or tanh", ValueError, gelu="relu", text=tmp_path / "text.txt")


# ---- vocabulary

OTHER = "".join(chr(0x4E00 + i) for i in range(65))


def vocabulary(tmp_path, value=None, **options):
    path = save(tmp_path / "repo" / "runs" / "out" / "ckpt.pt", value or checkpoint())
    report = convert_checkpoint(path, type="f16", **options)
    return File(report.path).keys["pygpt.tokenizer.characters"], report


@pytest.fixture
def folders(tmp_path, monkeypatch):
    (tmp_path / "repo" / "runs" / "out").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize(
    "where", ["repo/runs/out/data/letters", "repo/runs/data/letters", "repo/data/letters", "data/letters"]
)
def test_meta_is_found_above_the_checkpoint(folders, where):
    meta = save_meta(folders / where / "meta.pkl", OTHER)
    characters, report = vocabulary(folders)
    assert characters == list(OTHER) and report.vocabulary == f"65 characters from {meta}"


def test_the_nearest_meta_wins(folders):
    save_meta(folders / "data/letters/meta.pkl", TEXT)
    save_meta(folders / "repo/data/letters/meta.pkl", OTHER)
    save_meta(folders / "repo/data/others/meta.pkl", TEXT)
    assert vocabulary(folders)[0] == list(OTHER)


def test_meta_beside_the_checkpoint_is_found(folders):
    save_meta(folders / "repo/runs/out/meta.pkl", OTHER)
    save_meta(folders / "repo/data/letters/meta.pkl", TEXT)
    value = checkpoint()
    assert vocabulary(folders, value)[0] == list(OTHER)
    del value["config"]
    assert vocabulary(folders, value)[0] == list(OTHER)


def test_meta_is_found_where_nanogpt_looks(folders):
    save_meta(folders / "elsewhere/data/letters/meta.pkl", OTHER)
    assert vocabulary(folders)[0] == list(OTHER)


def save_text(path, n=1000):
    path.write_text(TEXT * (n // len(TEXT)), encoding="utf-8")
    return path


@pytest.mark.parametrize("where", ["repo/runs/out/meta.pkl", "repo/data/letters/meta.pkl"])
def test_meta_and_text_can_be_named(folders, where):
    """A text is what is tried, and the vocabulary only where no meta.pkl of the right size is found."""
    text = folders / "my.txt"
    text.write_text(OTHER[::-1] * 30, encoding="utf-8")
    assert vocabulary(folders, text=text)[0] == list(OTHER)
    meta = save_meta(folders / where, TEXT)
    assert vocabulary(folders, meta=save_meta(folders / "my.pkl", OTHER))[0] == list(OTHER)
    assert vocabulary(folders, meta=folders / "my.pkl", text=save_text(folders / "more.txt"))[0] == list(OTHER)
    characters, report = vocabulary(folders, text=save_text(text))
    assert characters == list(TEXT) and report.vocabulary == f"65 characters from {meta}"
    assert report.proof.text == "my.txt"


@pytest.mark.parametrize("what", ["of another size", "damaged", "of another kind"])
def test_a_text_decides_where_meta_does_not_fit(folders, what):
    meta = save_meta(folders / "repo/data/letters/meta.pkl", TEXT[:30])
    if what != "of another size":
        meta.write_bytes(pickle.dumps({"vocab_size": 65})[: 5 if what == "damaged" else None])
    path = save(folders / "repo/runs/out/ckpt.pt", checkpoint())
    refused(path, "meta.pkl: ", ValueError)
    text = folders / "my.txt"
    text.write_text(OTHER, encoding="utf-8")
    assert vocabulary(folders, text=text)[0] == list(OTHER)
    text.write_text(OTHER[:40], encoding="utf-8")
    refused(path, "my.txt: expected a text of 65 different characters.*found 40", ValueError, text=text)


def test_a_text_does_not_pass_for_gpt2s_vocabulary(tmp_path, monkeypatch):
    """Nor does it make a meta.pkl beside it, which contradicts the model's size, another model's."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "ckpt.pt", checkpoint(n_layer=1, n_embd=8, vocab_size=50304))
    options = {"type": "f16", "text": save_text(tmp_path / "my.txt"), "proof": False}
    assert convert_checkpoint(path, **options).vocabulary == "GPT-2's BPE, 50257 tokens and 47 ids of padding"
    (tmp_path / "ckpt.gguf").unlink()
    save_meta(tmp_path / "meta.pkl")
    refused(path, "expected a vocabulary of 50304 ids as the checkpoint has, found 65", ValueError, **options)


def test_meta_of_every_protocol_and_with_other_things_is_read(folders):
    for protocol in range(6):
        meta = {"vocab_size": 65, "itos": dict(enumerate(OTHER)), "stoi": {c: i for i, c in enumerate(OTHER)}}
        (folders / "my.pkl").write_bytes(pickle.dumps(meta | {"made by": Path("/")}, protocol))
        assert vocabulary(folders, meta=folders / "my.pkl")[0] == list(OTHER)


def test_a_text_with_carriage_returns_counts_as_nanogpt_counts(folders):
    text = TEXT[:64] + "\n"
    (folders / "my.txt").write_bytes((TEXT[:64] + "\r\n" + TEXT[:64]).encode())
    assert vocabulary(folders, text=folders / "my.txt")[0] == sorted(text)


@pytest.mark.parametrize("dataset", ["../letters", "/letters", "letters/../letters", 5, None, "", "a\0b", ["letters"]])
def test_a_dataset_that_leads_elsewhere_is_not_followed(folders, dataset):
    save_meta(folders / "repo/letters/meta.pkl", OTHER)
    save_meta(folders / "repo/data/letters/meta.pkl", OTHER)
    value = checkpoint()
    value["config"]["dataset"] = dataset
    path = save(folders / "repo/runs/out/ckpt.pt", value)
    refused(path, "name the text that it was trained on with --text input.txt", FileNotFoundError)


def test_a_missing_vocabulary_says_what_to_do(folders):
    path = save(folders / "repo/runs/out/ckpt.pt", checkpoint())
    sentence = refused(path, "vocabulary of its 65 ids", FileNotFoundError)
    assert "data/letters/meta.pkl" in sentence and "--text input.txt" in sentence


@pytest.mark.parametrize(
    ("n_vocab", "option"),
    [
        (255, {"text": "input.txt"}),
        (256, {"tokenizer": "bytes"}),
        (259, {"tokenizer": "bytes"}),
        (320, {"tokenizer": "bytes"}),
        (300, {"text": "input.txt"}),
        (50256, {"text": "input.txt"}),
        (50258, {"tokenizer": "gpt2"}),
        (51200, {"tokenizer": "gpt2"}),
        (51201, {"text": "input.txt"}),
    ],
    ids=str,
)
def test_the_one_option_that_is_named_helps(folders, n_vocab, option):
    path = save(folders / "repo/runs/out/ckpt.pt", checkpoint(n_layer=1, n_embd=8, n_head=1, vocab_size=n_vocab))
    sentence = refused(path, f"vocabulary of its {n_vocab} ids", FileNotFoundError, proof=False)
    ((name, value),) = option.items()
    assert sentence.endswith(f"--{name} {value}") and sentence.count("--") == 1
    if name == "text":
        value = folders / value
        value.write_text("".join(chr(0x10000 + i) for i in range(n_vocab)), encoding="utf-8")
    assert convert_checkpoint(path, proof=False, **{name: value}).vocabulary


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"meta": "none.pkl"}, "none.pkl: there is no such file"),
        ({"text": "none.txt"}, "none.txt: there is no such file"),
        ({"meta": "."}, "is no ordinary file"),
        ({"text": "."}, "cannot be read"),
        ({"meta": "few.pkl"}, "expected a vocabulary of 65 ids as the checkpoint has, found 20"),
        ({"meta": "many.pkl"}, "found 66"),
        ({"meta": "text.txt"}, "was it written by pickle.dump"),
        ({"meta": "ckpt.pt"}, "was it written by pickle.dump"),
        ({"meta": "list.pkl"}, "'itos', .* found a list"),
        ({"meta": "keys.pkl"}, "'itos', .* found the keys 'vocab', 5"),
        ({"meta": "holes.pkl"}, "a character for each id from 0 to 64"),
        ({"meta": "numbers.pkl"}, "a character for each id"),
        ({"meta": "twice.pkl"}, "one with two ids"),
        ({"meta": "surrogate.pkl"}, "half of a surrogate pair"),
        ({"text": "few.txt"}, "found 20"),
        ({"text": "bytes.txt"}, "UTF-8, found the byte 0xff"),
        ({"tokenizer": "bytes", "meta": "good.pkl"}, "leave out --meta"),
    ],
    ids=str,
)
def test_a_wrong_vocabulary_is_refused(tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "ckpt.pt", checkpoint())
    save_meta(tmp_path / "good.pkl")
    save_meta(tmp_path / "few.pkl", TEXT[:20])
    save_meta(tmp_path / "many.pkl", TEXT + "é")
    save_meta(tmp_path / "holes.pkl", itos={i + 1: c for i, c in enumerate(TEXT)})
    save_meta(tmp_path / "numbers.pkl", itos=dict(enumerate(range(65))))
    save_meta(tmp_path / "twice.pkl", itos={i: "a" for i in range(65)})
    save_meta(tmp_path / "surrogate.pkl", TEXT[:64] + "\ud800")
    Path("list.pkl").write_bytes(pickle.dumps([1]))
    Path("keys.pkl").write_bytes(pickle.dumps({"vocab": 1, 5: 2}))
    Path("few.txt").write_text(TEXT[:20])
    Path("bytes.txt").write_bytes(b"abc\xff")
    refused(path, match, **options)


def test_a_vocabulary_may_be_smaller_than_a_padded_model(tmp_path):
    value = checkpoint(vocab_size=128)
    path = save(tmp_path / "ckpt.pt", value)
    report = convert_checkpoint(path, meta=save_meta(tmp_path / "meta.pkl"))
    assert File(report.path).keys["pygpt.tokenizer.characters"] == list(TEXT)
    assert "Of the 128 ids those from 65 on are padding" in report.assumptions[1]


def test_gpt2s_vocabulary_is_taken_for_its_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    n_vocab = 50304
    path = save(tmp_path / "ckpt.pt", checkpoint(n_layer=1, n_embd=8, vocab_size=n_vocab))
    report = convert_checkpoint(path, type="f16", proof=False)
    keys = File(report.path).keys
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == n_vocab
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2"
    assert tokens[50256] == "<|endoftext|>" and types[50256] == 3 and set(types[:50256]) == {1}
    assert tokens[50257:] == [f"[PAD{i}]" for i in range(50257, n_vocab)] and set(types[50257:]) == {5}
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown")] == [50256] * 3
    assert any("GPT-2's BPE" in line for line in report.assumptions)
    path = save(tmp_path / "ckpt.pt", checkpoint(n_layer=1, n_embd=8, vocab_size=50257))
    assert convert_checkpoint(path, type="f16", proof=False).vocabulary == "GPT-2's BPE, 50257 tokens"


def test_gpt2s_vocabulary_equals_the_published_one():
    reader = gguf.GGUFReader(shared("vocab/gpt-2.gguf"))
    assert gpt2_bpe.tokens() == reader.fields["tokenizer.ggml.tokens"].contents()
    assert gpt2_bpe.merges() == reader.fields["tokenizer.ggml.merges"].contents()
    keys = gpt2_bpe.vocabulary_keys(50257)
    assert keys["tokenizer.ggml.token_type"] == reader.fields["tokenizer.ggml.token_type"].contents()


def test_gpt2s_vocabulary_is_whole_and_names_its_licence():
    import gzip
    from importlib import resources

    assert len(gpt2_bpe.merges()) == 50000 and len(set(gpt2_bpe.tokens())) == 50257
    data = resources.files("pygpt").joinpath("data", "gpt2_bpe.txt.gz").read_bytes()
    assert len(data) < 250_000
    assert "Modified MIT License, Copyright (c) 2019 OpenAI" in gzip.decompress(data).decode().splitlines()[0]


# ---- what is no checkpoint of nanoGPT


def state_dict(**shapes):
    return {name.replace("__", "."): torch.zeros(*shape) for name, shape in shapes.items()}


LOOKS = {
    "nearest is nanoGPT, but it lacks 'lm_head.weight' and 15 more and it has 'rope.freqs'": {
        "transformer__wpe__weight": (4, 4),
        "rope__freqs": (4,),
    },
    "nearest is Karpathy's lecture gpt.py, but it lacks": {"blocks__7__sa__heads__11__key__weight": (4, 4)},
    "nearest is the Transformer of attention-is-all-you-need-pytorch \\(which is not supported yet\\)": {
        "encoder__layer_stack__0__slf_attn__w_qs__weight": (4, 4)
    },
    "nearest is a Llama of Hugging Face \\(which is converted with its folder": {
        "model__layers__0__self_attn__q_proj__weight": (4, 4)
    },
    "unknown model \\('fc.weight' and 1 more\\) \\(known: ": {"fc__weight": (4, 4), "fc__bias": (4,)},
}


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}],
                         ids=["bare", "model", "state_dict"])  # fmt: skip
def test_the_nearest_kind_is_named_with_the_difference(tmp_path, looks, wrap):
    refused(save(tmp_path / "ckpt.pt", wrap(state_dict(**LOOKS[looks]))), looks)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b"GGUF\3\0\0\0", "ends too early"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a": 1}' + bytes(20), "safetensors"),
        (pickle.dumps({"a": 1}), "is a pickle of Python but not of torch.save"),
        (b"First Citizen:\nBefore we proceed", "is a text"),
        (b"<!DOCTYPE html>", "is a text"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(range(128, 200)), "is not a file of torch.save"),
        (b"PK\3\4" + bytes(100), "cut short or damaged"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, data, match):
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    refused(path, match)


def test_things_that_are_no_weights_are_named(tmp_path):
    for value, match in (
        (torch.nn.Linear(2, 2), "holds a pickled 'torch.nn.modules.linear.Linear', not weights"),
        ({"epoch": 3, "loss": 0.5}, "a dictionary without weights \\(keys: 'epoch', 'loss'\\)"),
        ({}, "keys: none"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ("text", "holds 'text'"),
    ):
        refused(save(tmp_path / "ckpt.pt", value), match)
    write_zip(tmp_path / "other.zip", b"").write_bytes(b"PK\5\6" + bytes(18))
    refused(tmp_path / "other.zip", "is not a file of torch.save")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"n_layer": 3}, "expected a tensor transformer.h.2.ln_1.weight, as nanoGPT with 3 layers has it, found none"),
        ({"n_layer": 1}, "with 1 layers and nothing else, found 'transformer.h.1.ln_1.weight'"),
        ({"n_layer": 0}, "n_layer to be a whole number from 1 to 10000, found 0"),
        ({"n_layer": None}, "n_layer .* found None"),
        ({"n_layer": 1 << 70}, "found a huge number"),
        ({"n_head": 3}, "n_embd 64 is no multiple of n_head 3"),
        ({"n_head": True}, "n_head .* found True"),
        ({"n_head": "2"}, "n_head .* found '2'"),
        ({"n_embd": 128}, "wte.weight to have shape \\[65, 128\\] by model_args, found \\[65, 64\\]"),
        ({"n_embd": 64.0}, "n_embd .* found 64.0"),
        ({"block_size": 17}, "wpe.weight to have shape \\[17, 64\\]"),
        ({"vocab_size": 66}, "shape \\[66, 64\\]"),
        ({"bias": False}, "bias=False, but the file holds transformer.h.0.ln_1.bias"),
        ({"bias": "no"}, "bias to be True or False, found 'no'"),
    ],
    ids=str,
)
def test_sizes_that_contradict_the_weights_are_refused(tmp_path, args, match):
    value = checkpoint()
    value["model_args"] |= args
    refused(save(tmp_path / "ckpt.pt", value), match, text=tmp_path / "text.txt")


def test_settings_that_nanogpt_does_not_have_are_said(tmp_path):
    value = checkpoint()
    value["model_args"] |= {"dropout": 0.1}
    assert not any("settings" in line for line in converted(tmp_path, value)[1].assumptions)
    value["model_args"] |= {"activation": "relu"}
    file, report = converted(tmp_path, value)
    sentence = "Its settings also name 'activation', which is unknown to nanoGPT; it was not followed."
    assert sentence in report.assumptions and sentence in file.keys["pygpt.assumptions"]


def test_missing_sizes_are_named(tmp_path):
    value = checkpoint()
    del value["model_args"]["n_head"]
    refused(save(tmp_path / "ckpt.pt", value), "n_head to be a whole number from 1 to 10000, found nothing")


def test_weights_that_cannot_be_are_refused(tmp_path):
    name = "transformer.h.1.attn.c_proj.weight"
    for w, match in (
        (torch.full((64, 64), float("nan")), "c_proj.weight: expected finite numbers"),
        (torch.full((64, 64), float("inf")), "c_proj.weight: expected finite numbers"),
        (
            torch.full((64, 64), -1e6),
            "c_proj.weight: holds 1e\\+06, more than q8_0 can; convert with --type f32 or bf16",
        ),
        (torch.zeros(64, 64, dtype=torch.int64), "floating-point numbers, found int64"),
        (torch.zeros(1).expand(64, 64), "its storage holds 1; a trained weight has memory of its own"),
        (torch.zeros(64), "shape \\[64, 64\\] by model_args, found \\[64\\]"),
        ("text", "expected a tensor .*c_proj.weight, as nanoGPT .* has it, found none"),
    ):
        value = checkpoint()
        value["model"][name] = w
        refused(save(tmp_path / "ckpt.pt", value), match, text=tmp_path / "text.txt")


def test_layers_that_share_their_memory_cannot_fill_the_disk(tmp_path):
    value = checkpoint(n_layer=1)
    value.pop("optimizer")
    value["model_args"]["n_layer"] = 200
    layer = {name[len("transformer.h.0.") :]: w for name, w in value["model"].items() if ".h.0." in name}
    value["model"] |= {f"transformer.h.{i}.{name}": w for i in range(200) for name, w in layer.items()}
    refused(
        save(tmp_path / "ckpt.pt", value), "numbers by their shapes, but the file has only", text=tmp_path / "text.txt"
    )


# ---- files and folders


def test_a_folder_means_its_ckpt(tmp_path):
    save(tmp_path / "ckpt.pt", checkpoint())
    report = convert_checkpoint(tmp_path, text=tmp_path / "text.txt")
    assert report.path == str(tmp_path / "ckpt.gguf")
    (tmp_path / "empty").mkdir()
    for name in ("ckpt.pt: there is no such file", "model.pt", r"model_\{step\}.pt or .bin", "base_.*", "config.json"):
        refused(tmp_path / "empty", name, FileNotFoundError)
    refused(tmp_path / "none.pt", "none.pt: there is no such file", FileNotFoundError)
    refused(Path("/dev/null"), "no ordinary file", ValueError)


def test_a_log_folder_of_build_nanogpt_means_its_newest_model(tmp_path):
    (tmp_path / "log").mkdir()
    for step in (0, 5000, 10000, 19072):
        save(tmp_path / "log" / f"model_{step:05d}.pt", checkpoint(n_layer=1))
    (tmp_path / "log" / "log.txt").touch()
    for folder in (tmp_path / "log", tmp_path):
        report = convert_checkpoint(folder, text=tmp_path / "log" / "text.txt", proof=False)
        assert report.path == str(tmp_path / "log" / "model_19072.gguf")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_nanochats_base_folder_means_its_only_model(tmp_path):
    for name in ("tokenizer/tokenizer.pkl", "base_data/model_000001.pt.d/shard", "report/report.md"):
        touch(tmp_path / name)
    refused(tmp_path, "ckpt.pt: there is no such file", FileNotFoundError)
    first = touch(tmp_path / "base_checkpoints" / "d4" / "model_000100.pt")
    assert convert.find_file(str(tmp_path)) == first
    base = touch(tmp_path / "base_checkpoints" / "d4" / "model_000200.pt")
    assert convert.find_file(str(tmp_path)) == convert.find_file(os.path.dirname(base)) == base
    chat = touch(tmp_path / "chatsft_checkpoints" / "d4" / "model_000050.pt")
    touch(tmp_path / "chatrl_checkpoints" / "d20" / "model_000050.pt")
    refused(
        tmp_path,
        "expected one model of nanochat, found 3: name one of base_checkpoints/d4, chatsft_checkpoints/d4, "
        "chatrl_checkpoints/d20$",
        ValueError,
    )
    assert convert.find_file(str(tmp_path / "chatsft_checkpoints")) == chat


def test_an_output_that_cannot_be_is_refused(tmp_path):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    options = {"text": tmp_path / "text.txt"}
    refused(path, "is a folder; name the file in it", out=tmp_path, **options)
    refused(path, "there is no folder .*; make it first", out=tmp_path / "none" / "x.gguf", **options)
    refused(path, "is an input too", out=path, **options)
    refused(path, "is a device", out="/dev/null", **options)
    refused(path, "cannot be written: File name too long", out=tmp_path / ("x" * 300), **options)
    assert path.stat().st_size > 100_000


def test_a_folder_without_permission_gives_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "ckpt.pt", checkpoint())

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    refused(
        path,
        "ckpt.gguf: cannot be written: Permission denied; name another folder with -o",
        text=tmp_path / "text.txt",
        proof=False,
    )


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, out = save(tmp_path / "ckpt.pt", checkpoint()), tmp_path / "ckpt.gguf"
    out.write_bytes(b"precious")
    (tmp_path / "link.gguf").symlink_to(out)

    def interrupt(done, total):
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(path, text=tmp_path / "text.txt", progress=interrupt)
    assert out.read_bytes() == b"precious"
    convert_checkpoint(path, tmp_path / "link.gguf", text=tmp_path / "text.txt")
    assert out.read_bytes()[:4] == b"GGUF" and (tmp_path / "link.gguf").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.gguf", "ckpt.pt", "link.gguf", "text.txt"]


def test_an_interrupt_at_any_point_leaves_nothing(tmp_path):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    before = sorted(tmp_path.iterdir())
    for when in range(0, 28, 5):
        n = 0

        def interrupt(done, total, when=when):
            nonlocal n
            n += 1
            if n > when:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(path, text=tmp_path / "text.txt", progress=interrupt)
        assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_gives_a_sentence_and_leaves_nothing(tmp_path):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 10_000, 100_000):  # within the keys, at the first tensors, later
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            refused(path, "ckpt.gguf: cannot be written: File too large", type="f32", text=tmp_path / "text.txt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_is_called_a_full_disk(tmp_path, monkeypatch):
    path = save(tmp_path / "ckpt.pt", checkpoint())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(path, "ckpt.gguf: the disk is full; make room", text=tmp_path / "text.txt")


def test_a_device_without_space_is_called_a_full_disk(tmp_path, monkeypatch):
    """/dev/full in place of the new file: every write fails, the one on closing too."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    path = save(tmp_path / "ckpt.pt", checkpoint())
    monkeypatch.setattr(gguf.GGUFWriter, "format_shard_names", lambda self, path: [Path("/dev/full")])
    refused(path, "the disk is full", text=tmp_path / "text.txt")


def test_progress_ends_at_the_size(tmp_path):
    path, calls = save(tmp_path / "ckpt.pt", checkpoint()), []
    convert_checkpoint(
        path, type="f32", text=tmp_path / "text.txt", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] == 4 * sum(w.size for w in random_weights().values())


def test_the_bar_is_shown_on_terminals_only(tmp_path, capsys, monkeypatch):
    path = save(tmp_path / "ckpt.pt", checkpoint())
    convert_checkpoint(path, text=tmp_path / "text.txt", progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    convert_checkpoint(path, text=tmp_path / "text.txt", progress=True)
    assert "converting" in capsys.readouterr().err


def test_the_report_is_a_few_lines_that_say_it_all(tmp_path):
    _, report = converted(tmp_path, checkpoint(), "q8_0")
    lines = str(report).splitlines()
    assert lines[0] == (
        "nanoGPT (by model_args and transformer.h.0.attn.c_attn.weight): "
        "2 layers, 2 heads, 64 wide, context 16, with biases, tied head"
    )
    assert lines[1] == f"vocabulary: 65 characters from {tmp_path / 'text.txt'}"
    assert lines[2].startswith("assumed: The GELU is erf, as in nanoGPT since 2023-06-14; not tried on text")
    assert lines[3] == "not measured: text.txt holds only 65 tokens that the model knows; name a text with --text"
    assert lines[4].startswith(f"{tmp_path / 'ckpt.gguf'}: 105.28 k parameters in ")
    assert lines[4].endswith(" kB, tensors: 18 f32, 9 q8_0, 1 f16") and len(lines) == 5
    assert report.n_bytes == (tmp_path / "ckpt.gguf").stat().st_size


def test_importing_the_package_is_cheap():
    program = "import sys, pygpt._lib; before = {*sys.modules}; import pygpt.convert; print(*{*sys.modules} - before)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"gguf", "torch", "tqdm", "zipfile", "pickletools"} & set(loaded)


def test_every_source_can_recognise_and_load():
    from importlib import import_module

    for module in convert.SOURCES.values():
        source = import_module("pygpt.convert." + module)
        assert callable(source.recognise) and callable(source.load)


# ---- cost

PROGRAM = """
import re, sys, time
sys.modules["torch"] = None
begin = time.perf_counter()
from pygpt.convert import convert_checkpoint
convert_checkpoint(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
seconds = time.perf_counter() - begin
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def cost(path, out, **options):
    """Seconds and megabytes of a conversion in a process of its own that cannot import torch."""
    output = subprocess.check_output([sys.executable, "-c", PROGRAM, str(path), str(out), repr(options)], text=True)
    return [float(n) for n in output.split()]


def test_memory_stays_far_below_the_size_of_the_file(tmp_path):
    value = checkpoint(bias=False, n_layer=1, n_embd=512, n_head=8, vocab_size=50304)
    path = save(tmp_path / "ckpt.pt", value)
    assert path.stat().st_size > 200e6
    assert cost(path, tmp_path / "out.gguf", proof=False)[1] < 120
    largest = 4 * 50304 * 512 / 1e6
    assert cost(path, tmp_path / "out.gguf")[1] < 300 + 2 * largest


def test_the_real_checkpoint_converts_without_torch_in_a_second(tmp_path):
    path = shared("nanogpt-shakespeare/out/ckpt.pt")
    begin = time.perf_counter()
    seconds = min(cost(path, tmp_path / "out.gguf", type=type, proof=False)[0] for type in TYPES)
    assert seconds < 1, f"{seconds:.2f} s, all of them {time.perf_counter() - begin:.2f} s"


def test_the_real_checkpoint_arrives_number_by_number(tmp_path):
    path = shared("nanogpt-shakespeare/out/ckpt.pt")
    report = convert_checkpoint(path, tmp_path / "out.gguf", type="f32")
    file = File(report.path)
    for name, w in torch.load(path, weights_only=True)["model"].items():
        if name != "lm_head.weight":
            assert np.array_equal(file.arrays[gguf_name(name)], w.numpy())
    text = (path.parents[1] / "data/shakespeare_char/input.txt").read_text()
    assert file.keys["pygpt.tokenizer.characters"] == sorted(set(text))
    assert report.n_params == 804096 and "4 layers, 4 heads, 128 wide, context 64, no biases" in report.summary


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoints_give_a_sentence_or_a_file(tmp_path, kind):
    """75 of each kind here; tests/fuzz_checkpoint.py does thousands."""
    (tmp_path / "fuzz").mkdir()
    fuzz = Fuzz(tmp_path / "fuzz")
    results = [fuzz.run(kind, seed) for seed in range(75)]
    assert any(sentence != "converted" for sentence in results)


@pytest.mark.parametrize("extra", ["lm_head.bias", "transformer.h.0.attn.q_norm.weight", "transformer.h.9.ln_1.weight"])
def test_a_changed_nanogpt_is_refused_by_what_it_has_more(tmp_path, extra):
    value = checkpoint()
    value["model"][extra] = torch.zeros(65)
    refused(save(tmp_path / "ckpt.pt", value), f"nothing else, found '{extra}'")


def test_the_output_may_not_be_an_input(tmp_path):
    meta, path = save_meta(tmp_path / "meta.pkl"), save(tmp_path / "ckpt.pt", checkpoint())
    for out in (meta, path):
        before = Path(out).read_bytes()
        refused(path, "is an input too", out=out, meta=meta)
        assert Path(out).read_bytes() == before
