"""llm.c's checkpoints become GGUF files that compute what its Python reference computes."""

import base64
import math
import random
import re
import struct

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here: pip install torch")

from fuzz_checkpoint import mutated  # noqa: E402
from pygpt.convert import convert_checkpoint, tiktoken_ranks  # noqa: E402
from reference import gpt, llama, llmc  # noqa: E402
from reference.llama2c import byte_pieces, tokenizer_bin  # noqa: E402
from test_convert_nanogpt import File  # noqa: E402

import pygpt  # noqa: E402
from pygpt.tokenizer import Tokenizer  # noqa: E402

F32 = 5e-4  # largest difference in logits whose spread is about 4: the other GELU makes 3e-3 of it
TEXT = "".join(chr(33 + i) for i in range(65))
GPT2_NAMES = {  # names in the twin's state_dict, GGUF's names
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gpt2_name(name):
    """GGUF's name of a tensor of the twin's."""
    layer = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"blk.{layer[1]}.{GPT2_NAMES[layer[2]]}.{layer[3]}"
    stem, _, kind = name.removeprefix("transformer.").rpartition(".")
    return {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}[stem] + "." + kind


def written(folder, data, name="model.bin"):
    path = folder / name
    path.write_bytes(data)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "tok.bin").write_bytes(TOKENIZER)
    return path


def converted(folder, data, type="f32", **options):
    report = convert_checkpoint(written(folder, data), type=type, **({"proof": False} | options))
    assert not list(folder.glob("*.part")) and report.path == str(folder / "model.gguf")
    return File(report.path), report


def refused(path, match, error=pygpt.Error, **options):
    before = sorted(path.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        convert_checkpoint(path, **({"proof": False} | options))
    sentence = str(caught.value)
    assert isinstance(caught.value, pygpt.Error) and "\n" not in sentence and len(sentence) < 600, sentence
    assert sorted(path.parent.iterdir()) == before, "something was left behind"
    return sentence


def options_named(sentence):
    return set(re.findall(r"--[a-z-]+", sentence))


def ids_below(n_vocab, n):
    return np.random.default_rng(1).integers(0, n_vocab, n).tolist()


def as_bfloat16(w):
    return torch.from_numpy(np.ascontiguousarray(w)).bfloat16().float().numpy()


# ---- GPT-2

GPT2_SHAPES = {
    "64 wide": gpt.Config(gelu="gelu_tanh"),
    "48 wide": gpt.Config(n_embd=48, n_head=3, n_layer=3, gelu="gelu_tanh"),
}


@pytest.mark.parametrize("version", [3, 5])
def test_every_number_of_gpt_2_arrives(tmp_path, version):
    model = gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))
    file, report = converted(tmp_path, llmc.gpt2(model, version), text=tmp_path / "text.txt")
    state = {name: w.numpy() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    for name, w in state.items():
        expected = as_bfloat16(w) if version == 5 else w
        assert np.array_equal(file.arrays.pop(gpt2_name(name)), expected), name
    assert not file.arrays and report.n_params == sum(w.size for w in state.values())


def test_the_keys_are_those_of_gpt2(tmp_path):
    model = gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))
    file, report = converted(tmp_path, llmc.gpt2(model), "q8_0", text=tmp_path / "text.txt")
    assert {
        name: value for name, value in file.keys.items() if not name.startswith(("GGUF.", "general.", "tokenizer."))
    } == {
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
        "gpt2.vocab_size": 65,
        "pygpt.activation": "gelu_tanh",
        "pygpt.source": "llm.c",
        "pygpt.tokenizer.model": "character",
        "pygpt.tokenizer.characters": list(TEXT),
    }
    assert file.keys["general.architecture"] == "gpt2" and report.recognised_by == "llm.c's magic number 20240326"


@pytest.mark.parametrize("shape", GPT2_SHAPES)
@pytest.mark.parametrize("version", [3, 5])
def test_gpt_2_computes_what_the_twin_computes(tmp_path, shape, version):
    model = gpt.random_gpt(GPT2_SHAPES[shape])
    data = llmc.gpt2(model, version)
    if version == 5:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16().float())
    _, report = converted(tmp_path, data, text=tmp_path / "text.txt")
    ids = ids_below(65, 32)
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(ids) - model.logits(ids).numpy()).max() < F32


def no_norm(name):
    return lambda model: model.get_parameter(name).fill_(1)


def no_bias(name):
    return lambda model: model.get_parameter(name).zero_()


def exact_gelu(model):
    for block in model.transformer.h:
        block.mlp.approximate = "none"


def keys_for_values(model):
    for block in model.transformer.h:
        q, k, v = block.attn.c_attn.weight.split(64)
        block.attn.c_attn.weight.copy_(torch.cat((q, v, k)))


def one_head_more(model):
    for block in model.transformer.h:
        block.attn.n_head = 4


MUTATIONS = {
    "the exact GELU": exact_gelu,
    "no attention norm": no_norm("transformer.h.1.ln_1.weight"),
    "no feed-forward norm": no_norm("transformer.h.0.ln_2.weight"),
    "no last norm": no_norm("transformer.ln_f.weight"),
    "no bias of a norm": no_bias("transformer.h.1.ln_2.bias"),
    "no bias of the last norm": no_bias("transformer.ln_f.bias"),
    "no bias of queries": no_bias("transformer.h.0.attn.c_attn.bias"),
    "no bias of the feed-forward": no_bias("transformer.h.1.mlp.c_proj.bias"),
    "no positions": no_bias("transformer.wpe.weight"),
    "keys for values": keys_for_values,
    "other heads": one_head_more,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_bound_sees_every_part_of_gpt_2(tmp_path, mutation):
    model = gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))
    _, report = converted(tmp_path, llmc.gpt2(model), text=tmp_path / "text.txt")
    ids = ids_below(65, 32)
    with pygpt.Model(report.path) as own:
        found = own.logits(ids)
    assert np.abs(found - model.logits(ids).numpy()).max() < F32
    with torch.no_grad():
        MUTATIONS[mutation](model)
    assert np.abs(found - model.logits(ids).numpy()).max() > F32


def test_gpt_2s_vocabulary_is_taken_for_its_50257_ids_without_an_option(tmp_path):
    model = gpt.random_gpt(gpt.Config(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=50257, gelu="gelu_tanh"))
    report = convert_checkpoint(written(tmp_path, llmc.gpt2(model, 5)), proof=False)
    assert report.vocabulary == "GPT-2's BPE, 50257 tokens" and "GPT-2's BPE" in report.assumptions[0]
    with pygpt.Model(report.path) as own:
        assert own.info.n_vocab == 50257 and own.complete("Hello", 3, seed=1)
        assert own.tokenizer.encode("Hello world") == [15496, 995]


def test_a_gpt_2_of_another_vocabulary_names_one_option(tmp_path):
    path = written(tmp_path, llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))))
    assert options_named(refused(path, "vocabulary of its 65 ids", FileNotFoundError)) == {"--text"}


def test_options_that_change_nothing_are_refused(tmp_path):
    path = written(tmp_path, llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))))
    for name, value in (("gelu", "erf"), ("n_head", 4), ("attention_scale", "head")):
        options = {name: value, "text": tmp_path / "text.txt"}
        refused(path, f"--{name.replace('_', '-')} is not for llm.c", ValueError, **options)


@pytest.mark.parametrize("change", [-1, -2000, -100_000, 1], ids=["a byte less", "less", "much less", "a byte more"])
def test_a_gpt_2_must_end_exactly(tmp_path, change):
    data = llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh")))
    path = written(tmp_path, data[:change] if change < 0 else data + b"\0")
    sentence = refused(path, f"expected {len(data)} bytes by its header, found {len(data) + change}", ValueError)
    assert ("it was cut short, copy it again" in sentence) == (change < 0) and "DONE" not in sentence


def test_a_checkpoint_that_was_not_finished_is_told_by_its_mark(tmp_path):
    data = llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh")))
    path = written(tmp_path, data[:-4], "model_00001000.bin")
    refused(path, "no DONE_00001000 lies beside it either: it was not written to its end", ValueError)
    path.write_bytes(data[:500])
    refused(path, "expected a header of 1024 bytes, found 500; no DONE_00001000", ValueError)
    path.write_bytes(data[:-4])
    (tmp_path / "DONE_00001000").touch()
    assert "DONE" not in refused(path, "it was cut short, copy it again", ValueError)
    path.write_bytes(data)
    (tmp_path / "DONE_00001000").unlink()
    assert convert_checkpoint(path, text=tmp_path / "text.txt", proof=False).path.endswith("model_00001000.gguf")


def test_a_log_folder_means_the_newest_model_that_was_written_to_its_end(tmp_path):
    log = tmp_path / "log124M"
    log.mkdir()
    data = llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh", n_layer=1)))
    for name in ("model_00000000.bin", "model_00000010.bin", "model_00000020.bin"):
        written(log, data, name)
    written(log, data[:-4], "model_00000030.bin")  # which training has just begun to write
    for name in ("state_00000040_00000.bin", "model_00000050.bin.tmp", "main.log", "DONE_00000060"):
        (log / name).touch()
    options = {"text": log / "text.txt", "proof": False}
    refused(log, "model_00000030.bin: expected .*; no DONE_00000030", ValueError, **options)
    for step, newest in ((0, 0), (20, 20), (10, 20)):
        (log / f"DONE_{step:08d}").touch()
        assert convert_checkpoint(log, **options).path == str(log / f"model_{newest:08d}.gguf")


@pytest.mark.parametrize(
    ("at", "number", "match"),
    [
        (1, 1, "is of llm.c's version 1; known are 3"),
        (1, 4, "is of llm.c's version 4"),
        (1, 5, "bytes by its header"),
        (2, 0, "expected maxT to be a whole number"),
        (3, -1, "expected V to be a whole number"),
        (3, 129, "expected Vp to be a whole number from 129"),
        (4, 1 << 30, "expected L to be a whole number from 1 to 10000"),
        (4, 3, "bytes by its header"),
        (5, 0, "expected NH to be a whole number"),
        (5, 3, "a width of 64 is no multiple of 3 heads"),
        (6, 1 << 30, "expected C to be a whole number"),
        (7, 64, "expected Vp to be a whole number from 65"),
        (7, 0, "expected Vp to be a whole number from 65"),
    ],
)
def test_a_header_of_gpt_2_that_cannot_be_is_named(tmp_path, at, number, match):
    data = llmc.gpt2(gpt.random_gpt(gpt.Config(gelu="gelu_tanh")))
    refused(written(tmp_path, data[: 4 * at] + struct.pack("<i", number) + data[4 * at + 4 :]), match)


# ---- Llama 3

PIECES = byte_pieces({"\u2581": -1.0} | {chr(97 + i): -2.0 - i for i in range(26)})
TOKENIZER = tokenizer_bin(PIECES)
V = len(PIECES)
LLAMA_SHAPES = {
    "64 wide": llama.Config(n_vocab=V, n_ctx=32, n_head=8, n_head_kv=4, n_ff=172, theta=500000.0),
    "48 wide": llama.Config(n_vocab=V, n_ctx=32, n_embd=48, n_head=4, n_head_kv=2, n_ff=128, n_layer=3, theta=500000.0),
}
LLAMA = LLAMA_SHAPES["64 wide"]
TIED = llama.Config(**{**vars(LLAMA), "tied": True})
WRITERS = {
    "train_llama3.py": llmc.llama3,
    "train_llama3.cu": llmc.llama3_c,
    "train_llama3.cu without tied heads": lambda *args, **kw: llmc.llama3_c(*args, old=True, **kw),
}


def scaled_factors(c):
    """What Llama 3.1 divides the frequency of each pair by, by its three cases."""
    factors = []
    for i in range(c.dim // 2):
        wave = 2 * math.pi * c.theta ** (2 * i / c.dim)
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_number_of_llama_3_arrives(tmp_path, writer, version):
    t = llama.random_tensors(LLAMA)
    file, report = converted(tmp_path, WRITERS[writer](LLAMA, t, version), tokenizer=tmp_path / "tok.bin")
    for name, w in t.items():
        assert np.array_equal(file.arrays.pop(name), as_bfloat16(w) if version == 5 else w), name
    assert not file.arrays and report.n_params == sum(w.size for w in t.values())
    assert "a head of its own" in report.summary and report.recognised_by == "llm.c's magic number 20240803"


def test_a_tied_head_is_not_in_the_file(tmp_path):
    t = llama.random_tensors(TIED)
    file, report = converted(tmp_path, llmc.llama3_c(TIED, t), tokenizer=tmp_path / "tok.bin")
    assert sorted(file.arrays) == sorted(t) and "tied head" in report.summary
    assert all(np.array_equal(file.arrays[name], w) for name, w in t.items())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain RoPE", "scaled RoPE"])
def test_the_keys_are_those_of_llama(tmp_path, writer, scaled):
    data = WRITERS[writer](LLAMA, llama.random_tensors(LLAMA), scaled=scaled)
    file, report = converted(tmp_path, data, tokenizer=tmp_path / "tok.bin")
    assert {
        name: value for name, value in file.keys.items() if not name.startswith(("GGUF.", "general.", "tokenizer."))
    } == {
        "llama.context_length": 32,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 172,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.vocab_size": V,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 500000,
        "pygpt.source": "llm.c",
    }
    assert ("scaled as Llama 3.1's" in report.summary) == scaled
    assert ("rope_freqs.weight" in file.arrays) == scaled
    if scaled:
        assert np.allclose(file.arrays["rope_freqs.weight"], scaled_factors(LLAMA), rtol=1e-6)
        assert {*file.arrays["rope_freqs.weight"][[0, -1]]} == {1, 8}


@pytest.mark.parametrize("scaled", [False, True], ids=["plain RoPE", "scaled RoPE"])
@pytest.mark.parametrize("shape", LLAMA_SHAPES)
@pytest.mark.parametrize("writer", WRITERS)
def test_llama_3_computes_what_the_twin_computes(tmp_path, writer, shape, scaled):
    c = LLAMA_SHAPES[shape]
    t = llama.random_tensors(c)
    _, report = converted(tmp_path, WRITERS[writer](c, t, scaled=scaled), tokenizer=tmp_path / "tok.bin")
    ids = ids_below(V, 32)
    with pygpt.Model(report.path) as own:
        found = own.logits(ids)
    expected = {
        flag: llama.logits(c, t | ({"rope_freqs.weight": scaled_factors(c)} if flag else {}), ids)
        for flag in (False, True)
    }
    assert np.abs(found - expected[scaled]).max() < F32 < np.abs(found - expected[not scaled]).max()


@pytest.mark.parametrize(
    ("a", "b"),
    [("ffn_up", "ffn_gate"), ("attn_k", "attn_v"), ("attn_norm", "ffn_norm")],
    ids=["gate and up", "keys and values", "norms"],
)
def test_what_lies_in_another_order_computes_something_else(tmp_path, a, b):
    t = llama.random_tensors(LLAMA)
    swapped = dict(t)
    for i in range(LLAMA.n_layer):
        one, other = (f"blk.{i}.{name}.weight" for name in (a, b))
        swapped[one], swapped[other] = t[other], t[one]
    _, report = converted(tmp_path, llmc.llama3(LLAMA, t), tokenizer=tmp_path / "tok.bin")
    ids = ids_below(V, 32)
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(ids) - llama.logits(LLAMA, swapped, ids)).max() > 100 * F32


def test_the_width_of_the_feed_forward_follows_from_the_size(tmp_path):
    for n_ff in (4, 68, 1024):
        c = llama.Config(**{**vars(LLAMA), "n_ff": n_ff})
        for write in WRITERS.values():
            file, _ = converted(tmp_path, write(c, llama.random_tensors(c)), tokenizer=tmp_path / "tok.bin")
            assert file.keys["llama.feed_forward_length"] == n_ff


def test_an_order_that_fits_by_chance_is_not_taken(tmp_path):
    c = llama.Config(n_vocab=V, n_ctx=8, n_embd=4, n_head=2, n_head_kv=2, n_ff=0, n_layer=1)
    per_c, per_py = 3 * 4 + 2, 3 * 4  # numbers for one more of the feed-forward, by the order
    extra = 4 + 3 * 4 + 4 + 4 + 4 + 4  # biases that only the one has
    fits = [n for n in range(1, 200) if (n * per_c + extra) % per_py == 0]
    assert fits
    c = llama.Config(**{**vars(c), "n_ff": fits[0]})
    t = llama.random_tensors(c)
    file, _ = converted(tmp_path, llmc.llama3_c(c, t, multiple_of=1), tokenizer=tmp_path / "tok.bin")
    assert all(np.array_equal(file.arrays[name], w) for name, w in t.items())


@pytest.mark.parametrize("change", [-1, -4, -1000, 1, 4], ids=str)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_llama_3_of_another_size_is_refused(tmp_path, writer, change):
    data = WRITERS[writer](LLAMA, llama.random_tensors(LLAMA), multiple_of=172)
    path = written(tmp_path, data[:change] if change < 0 else data + b"\0" * change)
    refused(path, "a multiple of 172, found [0-9]+ bytes, which none has", ValueError, tokenizer=tmp_path / "tok.bin")


def test_biases_that_are_not_zeros_are_refused(tmp_path):
    path = written(tmp_path, llmc.llama3_c(LLAMA, llama.random_tensors(LLAMA), bias=0.1))
    refused(path, "expected ln1b of layer 0 to be zeros", tokenizer=tmp_path / "tok.bin")


@pytest.mark.parametrize(
    ("writer", "at", "number", "match"),
    [
        ("train_llama3.py", 1, 4, "is of llm.c's version 4"),
        ("train_llama3.py", 10, 1, "expected norm_eps to be 0"),
        ("train_llama3.py", 11, 0, "expected rope_theta to be a number"),
        ("train_llama3.py", 12, 2, "expected use_scaled_rope to be a whole number from 0 to 1"),
        ("train_llama3.py", 9, 0, "expected multiple_of to be a whole number"),
        ("train_llama3.py", 6, 3, "8 heads cannot share 3 heads"),
        ("train_llama3.py", 5, 0, "expected n_head to be a whole number"),
        ("train_llama3.py", 7, -64, "expected n_embd to be a whole number"),
        ("train_llama3.py", 4, 1 << 30, "expected n_layer to be a whole number"),
        ("train_llama3.py", 2, 0, "expected block_size to be a whole number"),
        ("train_llama3.cu", 8, -4, "expected multiple_of to be a whole number"),
        ("train_llama3.cu", 9, 7, "expected use_scaled_rope to be a whole number from 0 to 1"),
        ("train_llama3.cu", 256, 0x7FC00000, "expected ffn_dim_multiplier to be a number"),
        ("train_llama3.cu", 257, 0x40000000, "expected norm_eps to be a number"),
        ("train_llama3.cu", 258, 0x7F800000, "expected rope_theta to be a number"),
    ],
)
def test_a_header_of_llama_3_that_cannot_be_is_named(tmp_path, writer, at, number, match):
    data = WRITERS[writer](LLAMA, llama.random_tensors(LLAMA))
    refused(written(tmp_path, data[: 4 * at] + struct.pack("<i", number) + data[4 * at + 4 :]), match)


@pytest.mark.parametrize("n", [3, 4, 100, 1023, 1024, 2047])
@pytest.mark.parametrize("writer", [*WRITERS, "GPT-2"])
def test_a_header_that_ends_early_is_refused(tmp_path, writer, n):
    model = gpt.random_gpt(gpt.Config(gelu="gelu_tanh"))
    data = llmc.gpt2(model) if writer == "GPT-2" else WRITERS[writer](LLAMA, llama.random_tensors(LLAMA))
    refused(written(tmp_path, data[:n]), "copy it again|not a file of torch.save", ValueError)


@pytest.mark.parametrize("writer", [*WRITERS, "GPT-2"])
def test_damaged_files_end_in_a_sentence_or_are_converted(tmp_path, writer):
    c = llama.Config(n_vocab=V, n_ctx=8, n_embd=8, n_head=2, n_head_kv=2, n_ff=12, n_layer=1)
    model = gpt.random_gpt(gpt.Config(n_layer=1, n_embd=8, n_head=1, block_size=4))
    data = llmc.gpt2(model) if writer == "GPT-2" else WRITERS[writer](c, llama.random_tensors(c))
    path = written(tmp_path, data)
    names = {p.name for p in tmp_path.iterdir()}
    for seed in range(60):
        path.write_bytes(mutated(data[:64], random.Random(seed)) + data[64:])
        try:
            options = {"text": tmp_path / "text.txt"} if writer == "GPT-2" else {"tokenizer": tmp_path / "tok.bin"}
            convert_checkpoint(path, proof=False, **options)
        except pygpt.Error as error:
            assert "\n" not in str(error) and 20 < len(str(error)) < 600 and not path.with_suffix(".gguf").exists()
        path.with_suffix(".gguf").unlink(missing_ok=True)
        assert {p.name for p in tmp_path.iterdir()} == names


# ---- Llama 3's vocabulary

WORDS = ["th", "the", " t", " the", "an", " an", "and", " and", "in", "er", "\n\n"] + [f"{i:03}" for i in range(37)]


@pytest.fixture
def llama3_ranks(monkeypatch):
    """A tokenizer.model in Llama 3's format, with fewer ranks; ids of special tokens follow them."""
    tokens = [bytes([i]) for i in range(256)] + [word.encode() for word in WORDS]
    monkeypatch.setattr(tiktoken_ranks, "LLAMA3_RANKS", len(tokens))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    return "".join(lines).encode(), len(tokens) + tiktoken_ranks.LLAMA3_SPECIALS


@pytest.mark.parametrize("place", ["tokenizer.model", "../tokenizer.model", "option"])
def test_llama_3s_vocabulary_is_found(tmp_path, llama3_ranks, place):
    ranks, n_vocab = llama3_ranks
    c = llama.Config(**{**vars(LLAMA), "n_vocab": n_vocab})
    (tmp_path / "out").mkdir()
    tokenizer = tmp_path / "my.txt" if place == "option" else tmp_path / "out" / place
    tokenizer.write_bytes(ranks)
    path = written(tmp_path / "out", llmc.llama3(c, llama.random_tensors(c)))
    report = convert_checkpoint(path, proof=False, **({"tokenizer": tokenizer} if place == "option" else {}))
    with pygpt.Model(report.path) as own:
        n = len(WORDS) + 256
        assert own.tokenizer.encode("the and") == [n, 257, 263] and own.tokenizer.bos == n
        assert set(own.tokenizer.stop_ids()) >= {n, n + 1}  # begin of text: the next one; and end of text
        assert own.complete("the and", 5, seed=1) is not None
    assert report.vocabulary.startswith("Llama 3's BPE")


@pytest.mark.parametrize("writer", WRITERS)
def test_without_a_tokenizer_one_option_is_named(tmp_path, writer):
    path = written(tmp_path, WRITERS[writer](LLAMA, llama.random_tensors(LLAMA)))
    sentence = refused(path, f"expected the vocabulary of its {V} ids", FileNotFoundError)
    assert options_named(sentence) == {"--tokenizer"}


def test_a_tokenizer_of_another_model_is_refused(tmp_path, llama3_ranks):
    path = written(tmp_path, llmc.llama3(LLAMA, llama.random_tensors(LLAMA)))
    (tmp_path / "tokenizer.model").write_bytes(llama3_ranks[0])
    sentence = refused(path, f"expected a tokenizer of {V} ids", ValueError)
    assert options_named(sentence) == {"--tokenizer"}


def test_from_llama_3_to_text(tmp_path):
    path = written(tmp_path, llmc.llama3_c(TIED, llama.random_tensors(TIED), 5, scaled=True))
    report = convert_checkpoint(path, tokenizer=tmp_path / "tok.bin")
    assert Tokenizer.from_file(report.path).kind == "sentencepiece"
    with pygpt.Model(report.path) as own:
        assert own.complete("once upon", 8, seed=1)
