"""llama2.c's checkpoints become GGUF files that compute what its Transformer computes and read text as run.c does."""

import json
import random
import re
import shutil
import struct
from contextlib import ExitStack

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from fuzz_checkpoint import mutated  # noqa: E402
from pygpt.convert import convert_checkpoint, llama2c, raw_file, vocabularies  # noqa: E402
from pygpt.convert.checkpoint import Input  # noqa: E402
from pygpt.convert.llama2c_tokenizer import from_bin  # noqa: E402
from reference import llama2c as twin  # noqa: E402
from reference.llama2c import Config, checkpoint, random_model, save, tokenizer_bin  # noqa: E402
from test_convert_nanogpt import File  # noqa: E402

import pygpt  # noqa: E402
from pygpt.tokenizer import Tokenizer  # noqa: E402
from pygpt.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN  # noqa: E402

F32 = 5e-4  # largest difference in logits whose spread is about 4: rounding makes 3e-5, leaving out any part 0.05
SPACE = "\u2581"
LETTERS = f"{SPACE}abcdefghijklmnopqrstuvwxyzOT.,!\u00e9"
JOINED = (  # each from two pieces; some have the same score
    f"th he the in an er on {SPACE}t {SPACE}the {SPACE}a nd and {SPACE}and ed re ing {SPACE}w as {SPACE}was {SPACE}s "
    f"{SPACE}{SPACE} On ce Once {SPACE}Once up {SPACE}up {SPACE}upon im me ime time {SPACE}time pon aa aaa aaaa"
).split(" ")
WORDS = {c: -1000.0 - i for i, c in enumerate(LETTERS)} | {word: -float(i // 3) for i, word in enumerate(JOINED)}
PIECES = twin.byte_pieces(WORDS)
BIN = tokenizer_bin(PIECES)
V = len(PIECES)
BASE_ASSUMED = "RoPE's base is 10000, as in llama2.c's code (--rope-base if not)."
SHAPES = {
    "stories260K": Config(vocab_size=V),
    "48 wide, untied, no groups": Config(48, 128, 3, 4, None, V, tied=False),
    "one head of keys": Config(96, 100, 2, 6, 1, V),
}
FORMATS = {
    "ckpt.pt": checkpoint,
    "version 0": twin.version_0,
    "version 1": twin.version_1,
    "version 2": twin.version_2,
}
NAMES = {  # llama2.c's names, GGUF's names
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
}


def gguf_name(name):
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.weight" if layer else NAMES[name.removesuffix(".weight")] + ".weight"


def written(folder, data, tokenizer=BIN):
    """A checkpoint in a folder, a tokenizer.bin beside it."""
    path = save(folder / ("model.bin" if isinstance(data, bytes) else "ckpt.pt"), data)
    if tokenizer:
        (folder / "tokenizer.bin").write_bytes(tokenizer)
    return path


def converted(folder, data, type="f32", tokenizer=BIN, named=None):
    path = written(folder, data, tokenizer)
    report = convert_checkpoint(path, type=type, tokenizer=named, proof=False)
    assert not list(folder.glob("*.part"))
    return File(report.path), report


def refused(path, match, error=pygpt.Error, **options):
    before = sorted(path.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        convert_checkpoint(path, **({"proof": False} | options))
    sentence = str(caught.value)
    assert isinstance(caught.value, pygpt.Error) and "\n" not in sentence and len(sentence) < 600, sentence
    assert sorted(path.parent.iterdir()) == before, "something was left behind"
    return sentence


def some_ids(n=32, seed=1):
    return np.random.default_rng(seed).integers(0, V, n).tolist()


# ---- weights


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_number_arrives(tmp_path, kind, tied):
    model = random_model(Config(vocab_size=V, tied=tied))
    file, report = converted(tmp_path, FORMATS[kind](model))
    expected = (twin.rounded(model) if kind == "version 2" else model).state_dict()
    if tied:
        del expected["output.weight"]
    for name, w in expected.items():
        assert np.array_equal(file.arrays.pop(gguf_name(name)), w.numpy()), name
    assert not file.arrays
    assert report.n_params == sum(w.numel() for w in expected.values())
    assert report.source == "llama2.c" and ("tied head" in report.summary) == tied


def test_the_keys_are_those_of_llama_cpp(tmp_path):
    file, report = converted(tmp_path, checkpoint(random_model(Config(vocab_size=V))), "q8_0")
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
        "llama.rope.freq_base": 10000,
        "pygpt.source": "llama2.c",
        "pygpt.assumptions": report.assumptions,
    }
    assert file.keys["general.architecture"] == "llama" and report.assumptions == [BASE_ASSUMED]
    assert "tokens from" in report.vocabulary and report.recognised_by.startswith("model_args and layers.0")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_every_position_equal_the_twins(tmp_path, shape, kind):
    model = random_model(SHAPES[shape])
    _, report = converted(tmp_path, FORMATS[kind](model))
    expected = (twin.rounded(model) if kind == "version 2" else model).logits(some_ids())
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(some_ids()) - expected).max() < F32


def no_norm(name):
    def change(model):
        model.get_parameter(name).fill_(1)

    return change


def swap_gate_and_up(model):
    for layer in model.layers:
        layer.feed_forward.w1, layer.feed_forward.w3 = layer.feed_forward.w3, layer.feed_forward.w1


def halves_for_pairs(model):
    """As if RoPE turned values i and i + D / 2 of a head."""
    D = model.config.dim // model.config.n_heads
    order = torch.arange(D).view(2, D // 2).t().flatten()
    for layer in model.layers:
        for linear in (layer.attention.wq, layer.attention.wk):
            linear.weight.copy_(linear.weight.view(-1, D, model.config.dim)[:, order].flatten(0, 1))


def other_grouping(model):
    """As if queries 0, 4, .. had keys 0, and not queries 0, 1, ..."""
    c = model.config
    for layer in model.layers:
        for linear in (layer.attention.wq, layer.attention.wo):
            rows = linear is layer.attention.wq
            w = linear.weight if rows else linear.weight.t()
            heads = w.reshape(c.n_heads // c.kv, c.kv, -1, c.dim).transpose(0, 1).reshape(c.dim, c.dim)
            linear.weight.copy_(heads if rows else heads.t())


def other_epsilon(model):
    for norm in [model.norm, *(norm for layer in model.layers for norm in (layer.attention_norm, layer.ffn_norm))]:
        norm.eps = 1e-2


def other_base(model):
    model.config.theta = 500000.0


MUTATIONS = {
    "no attention norm": no_norm("layers.1.attention_norm.weight"),
    "no feed-forward norm": no_norm("layers.0.ffn_norm.weight"),
    "no last norm": no_norm("norm.weight"),
    "gate and up swapped": swap_gate_and_up,
    "halves instead of pairs": halves_for_pairs,
    "heads grouped in another way": other_grouping,
    "another epsilon": other_epsilon,
    "another base": other_base,
    "values without output": lambda model: model.layers[1].attention.wo.weight.zero_(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_bound_sees_every_part(tmp_path, mutation):
    model = random_model(Config(vocab_size=V, n_kv_heads=2))
    _, report = converted(tmp_path, checkpoint(model))
    with pygpt.Model(report.path) as own:
        found = own.logits(some_ids())
    assert np.abs(found - model.logits(some_ids())).max() < F32
    with torch.no_grad():
        MUTATIONS[mutation](model)
    assert np.abs(found - model.logits(some_ids())).max() > 4 * F32


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_prefixes_and_buffers_are_dropped(tmp_path, prefix):
    model = random_model(Config(vocab_size=V))
    value = checkpoint(model, prefix=prefix)
    for i in range(2):  # of older PyTorch
        value["model"][f"{prefix}layers.{i}.attention.mask"] = torch.full((1, 1, 32, 32), -np.inf).triu(1)
    value["model"][prefix + "freqs_cos"] = value["model"][prefix + "freqs_sin"] = torch.zeros(32, 4)
    file, _ = converted(tmp_path, value)
    assert np.array_equal(file.arrays["blk.1.attn_q.weight"], model.layers[1].attention.wq.weight.detach().numpy())
    assert len(file.arrays) == 2 + 2 * 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_other_precision_are_read(tmp_path, dtype):
    value = checkpoint(random_model(Config(vocab_size=V)))
    value["model"] = {name: w.to(dtype) for name, w in value["model"].items()}
    file, _ = converted(tmp_path, value)
    for name, w in value["model"].items():
        if name != "output.weight":
            assert np.array_equal(file.arrays[gguf_name(name)], w.float().numpy())
    assert "output.weight" not in file.arrays


def test_an_epsilon_in_model_args_counts(tmp_path):
    model = random_model(Config(vocab_size=V, eps=1e-2))
    value = checkpoint(model)
    value["model_args"]["norm_eps"] = 1e-2
    _, report = converted(tmp_path, value)
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(some_ids()) - model.logits(some_ids())).max() < F32


def test_rows_of_172_are_no_multiple_of_32_and_it_is_said_once(tmp_path):
    model = random_model(Config(vocab_size=V))
    file, report = converted(tmp_path, checkpoint(model), "q8_0")
    assert file.types["blk.0.ffn_down.weight"] == "f16" and file.types["blk.0.ffn_up.weight"] == "q8_0"
    assert report.notes == ["2 matrices are f16 instead: rows of 172 are no multiple of 32."]
    with pygpt.Model(report.path) as own:
        found, expected = own.logits(some_ids()).ravel(), model.logits(some_ids()).ravel()
    assert found @ expected / np.sqrt((found @ found) * (expected @ expected)) > 0.995


# ---- .bin files


def test_groups_are_read_in_parts(tmp_path, monkeypatch):
    """A tensor of 3 million numbers is never whole in memory, and its parts need not begin where groups do."""
    c = Config(dim=50, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=60_000, max_seq_len=8)
    model = random_model(c)
    data = twin.version_2(model, group=50)
    path = save(tmp_path / "model.bin", data[:37] + struct.pack("<i", 50) + data[41:])
    sizes = []
    read = raw_file.RawFile.read
    monkeypatch.setattr(raw_file.RawFile, "read", lambda self, at, size: sizes.append(size) or read(self, at, size))
    with ExitStack() as stack:
        weights = llama2c.open_bin(Input(str(path), stack), llama2c.read_header(str(path)))
        blocks = list(weights["tok_embeddings.weight"].blocks())
        middle = weights["tok_embeddings.weight"].rows(7, 2)
    q, scale = twin.quantized(model.tok_embeddings.weight.detach().numpy(), 50)
    assert np.array_equal(np.concatenate(blocks), q * scale[:, None]) and len(blocks) == 3 and max(sizes) <= 1 << 20
    assert np.array_equal(middle, (q * scale[:, None])[7:9])


@pytest.mark.parametrize("group", [1, 8, 64])
def test_any_size_of_groups_is_read(tmp_path, group):
    model = random_model(Config(vocab_size=V))
    file, _ = converted(tmp_path, twin.version_2(model, group))
    w2 = twin.rounded(model, group).layers[0].feed_forward.w2.weight  # rows of 172: groups go across them
    assert np.array_equal(file.arrays["blk.0.ffn_down.weight"], w2.detach().numpy())


def test_scales_that_stand_at_the_end_are_not_taken_for_others(tmp_path):
    path = written(tmp_path, twin.version_2(random_model(Config(vocab_size=V)), scales_last=True))
    assert "export it again" in refused(path, "expected a scale for each 64 numbers", ValueError)


def test_a_version_0_without_tables_is_read(tmp_path):
    model = random_model(Config(vocab_size=V))
    file, _ = converted(tmp_path, twin.version_0(model, table=False))
    assert file.keys["llama.rope.freq_base"] == 10000


def test_the_tables_of_version_0_say_the_base(tmp_path):
    model = random_model(Config(vocab_size=V, theta=500000.0))
    file, report = converted(tmp_path, twin.version_0(model))
    assert file.keys["llama.rope.freq_base"] == 500000 and "RoPE 500000" in report.summary
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(some_ids()) - model.logits(some_ids())).max() < F32


def test_tables_of_no_base_are_refused(tmp_path):
    data = bytearray(twin.version_0(random_model(Config(vocab_size=V))))
    tables = np.frombuffer(data, "<f4")[-2 * 32 * 4 :]
    tables[:] = np.linspace(0.9, 0.1, tables.size)
    refused(written(tmp_path, bytes(data)), "is that of no base", ValueError)


@pytest.mark.parametrize("write", [twin.version_1, twin.version_2])
@pytest.mark.parametrize("change", [-1, -100_000, 1], ids=["a byte less", "much less", "a byte more"])
def test_a_file_must_end_exactly(tmp_path, write, change):
    data = write(random_model(Config(vocab_size=V)))
    path = written(tmp_path, data[:change] if change < 0 else data + b"\0")
    sentence = refused(path, f"expected {len(data)} bytes by its header, found {len(data) + change}", ValueError)
    assert ("it was cut short, copy it again" in sentence) == (change < 0)


def test_without_a_magic_number_the_size_must_be_right_to_the_byte(tmp_path):
    data = twin.version_0(random_model(Config(vocab_size=V)))
    for wrong in (data + b"\0\0\0\0", b"\1\0\0\0" + data[4:], data[:27]):
        refused(written(tmp_path, wrong), "not a file of torch.save", ValueError)


@pytest.mark.parametrize("dim", [64, 640], ids=["64 wide", "beginning like a pickle"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_version_0_that_was_cut_short_is_named(tmp_path, tied, dim):
    data = twin.version_0(random_model(Config(dim, n_layers=1, vocab_size=V, tied=tied)))
    for n in (28, 1000, len(data) - 1):
        sentence = refused(written(tmp_path, data[:n]), "export of version 0", ValueError)
        assert f"expected {len(data)} bytes by its sizes, found {n}; it was cut short" in sentence


@pytest.mark.parametrize(
    ("at", "kind", "number", "match"),
    [
        (4, "i", 3, "export version 3; known are 0, 1 and 2"),
        (4, "i", -1, "export version -1"),
        (8, "i", 0, "expected dim to be a whole number"),
        (8, "i", 128, "bytes by its header"),
        (8, "i", -64, "expected dim to be a whole number"),
        (16, "i", 1 << 30, "expected n_layers to be a whole number from 1 to 10000"),
        (20, "i", 7, "a width of 64 is no multiple of 7 heads"),
        (20, "i", 64, "heads of an even width"),
        (24, "i", 3, "8 heads cannot share 3 heads"),
        (28, "i", -V, "expected vocab_size to be a whole number"),
        (32, "i", 0, "expected max_seq_len to be a whole number"),
        (36, "B", 2, "expected 0 or 1 at byte 36"),
        (37, "i", 0, "expected group_size to be a whole number"),
        (37, "i", -64, "expected group_size to be a whole number"),
        (37, "i", 3, "bytes by its header"),
    ],
)
def test_a_header_that_cannot_be_is_named(tmp_path, at, kind, number, match):
    data = twin.version_2(random_model(Config(vocab_size=V)))
    refused(written(tmp_path, data[:at] + struct.pack("<" + kind, number) + data[at + struct.calcsize(kind) :]), match)


def test_groups_that_do_not_divide_a_matrix_are_refused(tmp_path):
    """Of a size at which the file would have the right number of bytes all the same."""
    model = random_model(Config(vocab_size=V))
    header = llama2c.read_header(str(written(tmp_path, twin.version_2(model))))
    header.group = 5
    data = twin.version_2(model)
    data = (data[:37] + struct.pack("<i", 5) + data[41:]).ljust(llama2c.size_by(header), b"\0")
    refused(written(tmp_path, data), r"of shape \[\d+, 64\] cannot be cut into groups of 5", ValueError)


@pytest.mark.parametrize("kind", ["version 0", "version 1", "version 2", "tokenizer"])
def test_damaged_files_end_in_a_sentence_or_are_converted(tmp_path, kind):
    model = random_model(Config(dim=8, hidden_dim=12, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=V, max_seq_len=4))
    data = FORMATS.get(kind, twin.version_1)(model)
    path = written(tmp_path, data)
    for seed in range(60):
        rng = random.Random(seed)
        # accidents in the header and around it: in the weights they change numbers
        path.write_bytes(data if kind == "tokenizer" else mutated(data[:300], rng) + data[300:])
        (tmp_path / "tokenizer.bin").write_bytes(mutated(BIN, rng) if kind == "tokenizer" else BIN)
        try:
            convert_checkpoint(path, proof=False)
        except pygpt.Error as error:
            assert "\n" not in str(error) and 20 < len(str(error)) < 600 and not path.with_suffix(".gguf").exists()
        path.with_suffix(".gguf").unlink(missing_ok=True)
        assert {p.name for p in tmp_path.iterdir()} == {"model.bin", "tokenizer.bin"}


# ---- ckpt.pt


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_layers": 3}, "expected a tensor layers.2.attention_norm.weight"),
        ({"n_layers": 1}, "expected the tensors of llama2.c and nothing else, found 'layers.1"),
        ({"n_heads": 5}, "no multiple of 5 heads"),
        ({"n_kv_heads": 8}, "expected layers.0.attention.wk.weight to have shape .64, 64. by model_args"),
        ({"n_kv_heads": 0}, "expected n_kv_heads to be a whole number"),
        ({"n_heads": None}, "expected n_heads to be a whole number"),
        ({"vocab_size": 999}, "expected tok_embeddings.weight to have shape"),
        ({"dim": "64"}, "expected dim to be a whole number"),
        ({"norm_eps": -1}, "expected norm_eps to be a number"),
        ({"rope_theta": 0}, "expected rope_theta to be a number"),
        ({"rope_theta": "1e6"}, "expected rope_theta to be a number"),
        ({"max_seq_len": 1 << 40}, "expected max_seq_len to be a whole number"),
    ],
)
def test_model_args_that_the_weights_contradict_are_named(tmp_path, change, match):
    value = checkpoint(random_model(Config(vocab_size=V)))
    value["model_args"].update(change)
    refused(written(tmp_path, value), match)


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path):
    value = checkpoint(random_model(Config(vocab_size=V)))
    value["model"]["layers.0.attention.wq.lora_A.weight"] = torch.zeros(4, 64)
    refused(written(tmp_path, value), "a changed model would come out wrong")
    for name in ("layers.1.feed_forward.w2.weight", "layers.0.feed_forward.w1.weight", "norm.weight"):
        value = checkpoint(random_model(Config(vocab_size=V)))
        del value["model"][name]
        refused(written(tmp_path, value), f"expected a tensor {name}")


def test_weights_without_model_args_are_named(tmp_path):
    weights = random_model(Config(vocab_size=V)).state_dict()
    for value in (weights, {"model": weights}, {"model": weights, "model_args": None}):
        sentence = refused(
            written(tmp_path, value), "the nearest is llama2.c, but no model_args with its sizes lie beside"
        )
        assert "the ckpt.pt that its train.py saves" in sentence
    refused(written(tmp_path, weights | {"rope.freqs": torch.zeros(4)}), "llama2.c, but it has 'rope.freqs' \\(")


def test_a_head_that_is_missing_is_tied(tmp_path):
    value = checkpoint(random_model(Config(vocab_size=V)))
    del value["model"]["output.weight"]
    assert "output.weight" not in converted(tmp_path, value)[0].arrays
    value["model"]["output.weight"] = value["model"]["tok_embeddings.weight"].clone()
    assert "output.weight" not in converted(tmp_path, value)[0].arrays


def test_options_that_change_nothing_are_refused(tmp_path):
    path = written(tmp_path, checkpoint(random_model(Config(vocab_size=V))))
    for name, value in (("gelu", "erf"), ("meta", "meta.pkl"), ("n_head", 4), ("softcap", 15.0)):
        refused(path, f"--{name.replace('_', '-')} is not for llama2.c", ValueError, **{name: value})


# ---- RoPE's base


def converted_with(tmp_path, data, **options):
    """RoPE's base in the model file, and what was said about it."""
    report = convert_checkpoint(written(tmp_path, data), type="f32", proof=False, **options)
    return File(report.path).keys["llama.rope.freq_base"], [line for line in report.assumptions if "RoPE" in line]


def with_theta(model, theta):
    """As forks save it."""
    value = checkpoint(model)
    value["model_args"]["rope_theta"] = theta
    return value


@pytest.mark.parametrize("kind", FORMATS)
def test_where_the_file_does_not_say_the_base_the_option_does(tmp_path, kind):
    data = FORMATS[kind](random_model(Config(vocab_size=V, n_layers=1)))
    assert converted_with(tmp_path, data) == (10000, [BASE_ASSUMED])
    said = ["RoPE's base is 1000000, as the option says."]
    assert converted_with(tmp_path, data, rope_base=1e6) == (1e6, said)
    for wrong in (0.5, -1.0, float("nan"), "1e6"):
        refused(written(tmp_path, data), "must be a number above 1", rope_base=wrong)


def test_a_base_in_model_args_counts(tmp_path):
    model = random_model(Config(vocab_size=V, theta=500000.0))
    _, report = converted(tmp_path, with_theta(model, 500000.0))
    assert not report.assumptions and "RoPE 500000" in report.summary
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(some_ids()) - model.logits(some_ids())).max() < F32
    assert converted_with(tmp_path, with_theta(model, None)) == (10000, [BASE_ASSUMED])


def test_the_base_of_the_option_is_what_is_computed(tmp_path):
    model = random_model(Config(vocab_size=V, theta=500000.0))
    report = convert_checkpoint(written(tmp_path, twin.version_1(model)), type="f32", proof=False, rope_base=500000)
    with pygpt.Model(report.path) as own:
        assert np.abs(own.logits(some_ids()) - model.logits(some_ids())).max() < F32


@pytest.mark.parametrize("kind", ["model_args", "tables"])
def test_an_option_that_contradicts_the_base_in_the_file_is_refused(tmp_path, kind):
    model = random_model(Config(vocab_size=V, n_layers=1, theta=500000.0))
    data = with_theta(model, 500000.0) if kind == "model_args" else twin.version_0(model)
    assert converted_with(tmp_path, data, rope_base=5e5) == (500000, [])
    (path,) = [path for path in tmp_path.iterdir() if path.name in ("ckpt.pt", "model.bin")]
    path.with_suffix(".gguf").unlink()
    refused(path, "--rope-base 10000 contradicts .*, which says 500000; leave it out", ValueError, rope_base=10000.0)


# ---- where the vocabulary is found


OTHER = tokenizer_bin(twin.byte_pieces({**dict.fromkeys(WORDS, 0.0)}))  # as many tokens, with other scores
SHORT = tokenizer_bin(PIECES[:-1])


def found(tmp_path, data=None, **options):
    """The scores of the vocabulary that a checkpoint in repo/out got."""
    data = data or checkpoint(random_model(Config(vocab_size=V, n_layers=1)))
    path = save(tmp_path / "repo" / "out" / ("model.bin" if isinstance(data, bytes) else "ckpt.pt"), data)
    report = convert_checkpoint(path, proof=False, **options)
    scores = File(report.path).keys["tokenizer.ggml.scores"]
    return BIN if scores[-1] else OTHER


@pytest.mark.parametrize("data", [None, "bin"], ids=["ckpt.pt", "model.bin"])
@pytest.mark.parametrize(
    "place", ["data/tok{V}.bin", "out/tok{V}.bin", "tok{V}.bin", "out/tokenizer.bin", "tokenizer.bin"]
)
def test_the_tokenizer_is_found(tmp_path, place, data):
    save(tmp_path / "repo" / place.format(V=V), BIN)
    data = data and twin.version_1(random_model(Config(vocab_size=V, n_layers=1)))
    assert found(tmp_path, data) == BIN


def test_that_of_the_same_size_comes_before_one_of_any(tmp_path):
    save(tmp_path / "repo" / "data" / f"tok{V}.bin", BIN)
    save(tmp_path / "repo" / "out" / "tokenizer.bin", OTHER)
    assert found(tmp_path) == BIN


def test_a_tokenizer_of_another_size_is_passed_over(tmp_path):
    save(tmp_path / "repo" / "out" / "tokenizer.bin", BIN)
    save(tmp_path / "repo" / "data" / f"tok{V}.bin", SHORT)
    assert found(tmp_path) == BIN
    (tmp_path / "repo" / "out" / "tokenizer.bin").rename(tmp_path / "repo" / "tokenizer.bin")
    save(tmp_path / "repo" / "out" / "tokenizer.bin", SHORT)
    assert found(tmp_path) == BIN


def tokenizer_model(pieces):
    """A tokenizer.model of these pieces with their scores, as sentencepiece trains it by byte pairs."""

    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)  # unknown, control, bytes, normal; below: trained by pairs
    parts = [
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))
        for (text, score), kind in zip(pieces, types, strict=False)
    ]
    return b"".join(parts) + field(2, bytes([3 << 3, 2])) + field(3, bytes([3 << 3, 1, 4 << 3, 0]))


@pytest.mark.parametrize("kind", ["custom", None])
def test_the_nearest_tokenizer_wins_whatever_its_ending(tmp_path, kind):
    """One above may be another project's: a model of the same folder comes first, not one of any."""
    other = tokenizer_model(twin.byte_pieces(dict.fromkeys(WORDS, 0.0)))
    data = checkpoint(random_model(Config(vocab_size=V, n_layers=1)), vocab_source=kind)
    save(tmp_path / "tokenizer.model", other)
    assert found(tmp_path, data) == OTHER
    save(tmp_path / "repo" / "tokenizer.bin", BIN)
    assert found(tmp_path, data) == BIN
    save(tmp_path / "repo" / "tokenizer.model", other)
    assert found(tmp_path, data) == OTHER
    save(tmp_path / "repo" / "out" / f"tok{V}.bin", BIN)
    save(tmp_path / "repo" / "data" / f"tok{V}.model", other)
    assert found(tmp_path, data) == BIN


def test_the_option_comes_first(tmp_path):
    save(tmp_path / "repo" / "out" / "tokenizer.bin", OTHER)
    assert found(tmp_path, tokenizer=save(tmp_path / "my.bin", BIN)) == BIN


def test_a_model_of_llama_2s_vocabulary_does_not_look_at_custom_ones(tmp_path):
    save(tmp_path / "repo" / "data" / f"tok{V}.bin", OTHER)
    save(tmp_path / "repo" / "tokenizer.bin", BIN)
    model = random_model(Config(vocab_size=V, n_layers=1))
    assert found(tmp_path, checkpoint(model, vocab_source="llama2")) == BIN
    assert found(tmp_path, checkpoint(model, vocab_source="custom")) == OTHER


def test_a_custom_vocabulary_of_32000_is_not_taken_for_llama_2s(tmp_path):
    names = {kind: llama2c.tokenizer_names(32000, kind) for kind in ("custom", "llama2", None)}
    of_its_size = ["data/tok32000.model", "data/tok32000.bin", "tok32000.model", "tok32000.bin"]
    assert names["custom"] == [of_its_size] and names["llama2"] == [["tokenizer.model", "tokenizer.bin"]]
    assert names[None] == [*names["custom"], *names["llama2"]]


def test_a_vocabulary_that_a_bin_file_does_not_name_is_an_assumption(tmp_path):
    _, report = converted(tmp_path, twin.version_1(random_model(Config(vocab_size=V))))
    assert report.assumptions == [
        BASE_ASSUMED,
        f"The vocabulary is that of {tmp_path / 'tokenizer.bin'}: as many tokens, and the nearest of its name.",
    ]


def options_named(sentence):
    return set(re.findall(r"--[a-z-]+", sentence))


@pytest.mark.parametrize("kind", FORMATS)
def test_without_a_tokenizer_one_option_is_named(tmp_path, kind):
    path = written(tmp_path, FORMATS[kind](random_model(Config(vocab_size=V))), tokenizer=None)
    sentence = refused(path, f"expected the vocabulary of its {V} ids", FileNotFoundError)
    assert options_named(sentence) == {"--tokenizer"}


def test_with_one_of_another_size_alone_one_option_is_named(tmp_path):
    path = written(tmp_path, checkpoint(random_model(Config(vocab_size=V))), tokenizer=SHORT)
    sentence = refused(path, f"expected a tokenizer of {V} tokens.*found {V - 1}", ValueError)
    assert options_named(sentence) == {"--tokenizer"}


def test_gpt_2s_vocabulary_is_never_guessed(tmp_path):
    c = Config(dim=8, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=50257, max_seq_len=4)
    path = written(tmp_path, checkpoint(random_model(c)), tokenizer=None)
    assert options_named(refused(path, "vocabulary of its 50257 ids", FileNotFoundError)) == {"--tokenizer"}


def test_the_tokenizer_is_not_overwritten(tmp_path):
    path = written(tmp_path, checkpoint(random_model(Config(vocab_size=V))))
    with pytest.raises(ValueError, match="is an input too"):
        convert_checkpoint(path, tmp_path / "tokenizer.bin", proof=False)


# ---- tokenizer.bin

TEXTS = [
    "",
    " ",
    "   ",
    "a",
    "Once upon a time",
    "  Once  upon   a    time  ",
    "the\nthe\n\nthe\r\n\tthe",
    "caf\u00e9 \u00e9\u00e8 e\u0301",
    "\U0001f600 \U0001f468\u200d\U0001f469 \u4f60\u597d",
    "aaaaaaaaaaa",
    "aathethehetheaa",
    "xyz QRS 123 <0x41> <s> </s> <unk>",
    "\x01\x7f\u0080\u00ff\u0100",
    "thehe ingand andand wasas",
]


def own_tokenizer(tmp_path, data):
    (tmp_path / "t.bin").write_bytes(data)
    n = len(twin.unpacked(data))
    return Tokenizer.from_keys(vocabularies.named(str(tmp_path / "t.bin"), n).keys)


def random_texts(n=400):
    rng = random.Random(1)
    bits = [*JOINED, *LETTERS, " ", "  ", "\n", "\U0001f600", "\u00e9", "Q", "9", "<0x0A>"]
    return ["".join(rng.choices(bits, k=rng.randrange(1, 30))).replace(SPACE, " ") for _ in range(n)]


def test_ids_are_those_of_run_c(tmp_path):
    tokenizer = own_tokenizer(tmp_path, BIN)
    for text in TEXTS + random_texts():
        assert tokenizer.encode(text) == twin.run_c_encode(BIN, text), text
        assert tokenizer.decode(tokenizer.encode(text)[1:]) == text


def test_of_equal_scores_the_leftmost_is_joined_first(tmp_path):
    data = tokenizer_bin(twin.byte_pieces({SPACE: -9, "a": -9, "b": -9, "aa": -1, "ab": -1, "ba": -1, "aab": -2}))
    tokenizer = own_tokenizer(tmp_path, data)
    rng = random.Random(2)
    texts = ["aaa", "aab", "abab", "baab"] + ["".join(rng.choices("ab ", k=12)) for _ in range(200)]
    assert all(tokenizer.encode(text) == twin.run_c_encode(data, text) for text in texts)
    assert tokenizer.encode("aaa")[2:] == [262, 263 - 3]  # (aa) a, not a (aa)


def test_ids_are_those_of_run_c_with_a_vocabulary_of_sentencepiece(tmp_path):
    pytest.importorskip("sentencepiece", reason="it trains vocabularies as llama2.c does: pip install sentencepiece")
    from reference.hf_folder import TEXT, sentencepiece_model

    data = tokenizer_bin(model_pieces(sentencepiece_model()))
    tokenizer = own_tokenizer(tmp_path, data)
    texts = [TEXT[at : at + 40] for at in range(0, len(TEXT), 13)]
    for text in TEXTS + texts + [TEXT]:
        assert tokenizer.encode(text) == twin.run_c_encode(data, text), text


def model_pieces(model):
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())]


def test_tokenizer_model_and_tokenizer_bin_are_one_vocabulary(tmp_path):
    pytest.importorskip("sentencepiece", reason="it trains vocabularies as llama2.c does: pip install sentencepiece")
    from reference.hf_folder import sentencepiece_model

    model = sentencepiece_model()
    keys = []
    for name, data in (("tokenizer.bin", tokenizer_bin(model_pieces(model))), ("tokenizer.model", model)):
        folder = tmp_path / name
        save(folder / name, data)
        value = checkpoint(random_model(Config(vocab_size=320, n_layers=1)))
        file, _ = converted(folder, value, tokenizer=None)
        keys.append({key: value for key, value in file.keys.items() if key.startswith("tokenizer.")})
    assert keys[0] == keys[1] and len(keys[0]["tokenizer.ggml.tokens"]) == 320


def test_a_tokenizer_model_that_is_found_must_have_as_many_tokens(tmp_path):
    """Named, it may have fewer: 384 is 320 rounded up, and what no text can produce is never said."""
    pytest.importorskip("sentencepiece", reason="it trains vocabularies as llama2.c does: pip install sentencepiece")
    from reference.hf_folder import sentencepiece_model

    model = save(tmp_path / "tokenizer.model", sentencepiece_model())
    path = written(tmp_path, checkpoint(random_model(Config(vocab_size=384, n_layers=1))), tokenizer=None)
    sentence = refused(path, "expected a tokenizer of 384 tokens.*found 320", ValueError)
    assert options_named(sentence) == {"--tokenizer"}
    file, report = converted(tmp_path, checkpoint(random_model(Config(vocab_size=384))), tokenizer=None, named=model)
    assert "320 tokens from" in report.vocabulary and "from 320 on are padding" in report.assumptions[1]
    tokenizer = Tokenizer.from_file(report.path)
    assert tokenizer.banned_ids(384) == [*range(320, 384)] and tokenizer.encode("a")[0] == 1
    refused(save(tmp_path / "more.pt", checkpoint(random_model(Config(vocab_size=V)))), "found 320", tokenizer=model)


def test_the_tokens_are_spelled_as_in_gguf(tmp_path):
    file, _ = converted(tmp_path, checkpoint(random_model(Config(vocab_size=V))))
    tokens, types = file.keys["tokenizer.ggml.tokens"], file.keys["tokenizer.ggml.token_type"]
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and tokens[258:260] == ["<0xFF>", SPACE]
    assert tokens == [text for text, _ in PIECES] and types == [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (
        V - 259
    )
    assert file.keys["tokenizer.ggml.scores"] == [np.float32(score) for _, score in PIECES]
    assert {name: value for name, value in file.keys.items() if "_token" in name and "type" not in name} == {
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert file.keys["tokenizer.ggml.add_space_prefix"] is True


def test_older_files_with_bytes_as_characters_mean_the_same(tmp_path):
    old = tokenizer_bin([(chr(id - 3) if 3 <= id < 259 else text, score) for id, (text, score) in enumerate(PIECES)])
    assert old != BIN
    keys = [from_bin(str(save(tmp_path / f"{i}.bin", data)), V).keys for i, data in enumerate((old, BIN))]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (BIN[:-1], "it was cut short or damaged"),
        (BIN[:-12], f"found {V - 1}; name the one"),
        (BIN + b"\0", "found something else behind token 3"),
        (b"", "found something else behind token 0"),
        (b"GGUF" * 200, "found something else behind token 0"),
        (BIN[:4] + struct.pack("<f", np.nan) + BIN[8:], "behind token 0"),
        (BIN[:4] + struct.pack("<fi", 0, -1) + BIN[12:], "behind token 0"),
        (BIN[:4] + struct.pack("<fi", 0, 1 << 30) + BIN[12:], "behind token 0"),
        (BIN.replace(b"<0x41>", b"<0x4\xff>"), "behind token 68"),
        (BIN.replace(b"<0x41>", b"<0x42>"), "expected the byte 0x41 at id 68"),
        (tokenizer_bin(PIECES[:-1] + [("the", 0.0)]), "the token 'the' has two ids"),
        (tokenizer_bin(PIECES[3:] + PIECES[:3]), "expected the byte 0x00 at id 3"),
        (tokenizer_bin(PIECES + [("extra", 0.0)]), f"expected a tokenizer of {V} tokens.*found {V + 1}"),
        ((20240328).to_bytes(4, "little") + b"\2\0\0\0" * 300, "tokenizer of llm.c, which can only decode"),
    ],
    ids=["a byte less", "a token less", "a byte more", "empty", "another file", "a score", "a length", "a large length",
         "no UTF-8", "bytes", "twice", "order", "a token more", "llm.c"],
)  # fmt: skip
def test_other_tokenizers_are_refused(tmp_path, data, match):
    path = written(tmp_path, checkpoint(random_model(Config(vocab_size=V, n_layers=1))), tokenizer=None)
    refused(path, match, ValueError, tokenizer=save(tmp_path / "t.bin", data))
    save(tmp_path / "tokenizer.bin", data)
    refused(path, match, ValueError)


# ---- text


def parrot(cycle):
    """A model that says these ids one after the other."""
    model = random_model(Config(dim=64, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=V, tied=False))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1) if "norm" in name else p.zero_() if name.startswith("layers") else None
        embedding = model.tok_embeddings.weight
        embedding.copy_(torch.nn.functional.normalize(embedding, dim=1))
        model.output.weight.zero_()
        for now, then in zip(cycle, cycle[1:], strict=False):
            model.output.weight[then] += 10 * embedding[now]
    return model


@pytest.mark.parametrize("last", [1, 2], ids=["BOS", "EOS"])
def test_a_text_ends_where_the_next_begins(tmp_path, last):
    place = {text: id for id, (text, _) in enumerate(PIECES)}
    story = [place[text] for text in (f"{SPACE}Once", f"{SPACE}upon", f"{SPACE}a", f"{SPACE}time", ".")]
    _, report = converted(tmp_path, checkpoint(parrot([1, *story, last, story[0]])))
    with pygpt.Model(report.path) as own:
        assert set(own.tokenizer.stop_ids()) == {1, 2}
        generation = own.generate("", 20, temperature=0)
        assert "".join(generation) == "Once upon a time." and generation.finish == "end"
        assert own.complete("Once upon", 20, temperature=0) == " a time."


@pytest.mark.parametrize("kind", FORMATS)
def test_from_checkpoint_to_text_without_an_option(tmp_path, kind):
    path = written(tmp_path, FORMATS[kind](random_model(Config(vocab_size=V))))
    report = convert_checkpoint(path, proof=None if kind == "ckpt.pt" else False)
    with pygpt.Model(report.path) as own:
        text = own.complete("Once upon a time", 12, seed=1)
        assert text and text == own.complete("Once upon a time", 12, seed=1)


# ---- others' engines and formats


def test_export_to_hugging_face_is_converted(tmp_path):
    """export.py's version -1: rows of queries and keys in the other order, pytorch_model.bin, no tokenizer."""
    pytest.importorskip("sentencepiece", reason="it trains vocabularies as llama2.c does: pip install sentencepiece")
    from reference.hf_folder import sentencepiece_model

    c = Config(vocab_size=320)
    model = random_model(c)
    state = model.state_dict()
    names = {  # transformers' names
        "attention_norm": "input_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    out = {
        "model.embed_tokens.weight": state["tok_embeddings.weight"].clone(),
        "model.norm.weight": state["norm.weight"],
    }
    for i in range(c.n_layers):
        for ours, theirs in names.items():
            w = state[f"layers.{i}.{ours}.weight"]
            if ours in ("attention.wq", "attention.wk"):
                w = w.view(-1, 4, 2, 64).transpose(1, 2).reshape(w.shape)
            out[f"model.layers.{i}.{theirs}.weight"] = w.clone()
    out["lm_head.weight"] = out["model.embed_tokens.weight"]
    folder = tmp_path / "hf"
    save(folder / "pytorch_model.bin", out)
    save(folder / "tokenizer.model", sentencepiece_model())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for source in (folder, folder / "pytorch_model.bin"):
        report = convert_checkpoint(source, type="f32", proof=False)
        assert report.source == "Hugging Face" and "tied head" in report.summary
        ids = np.random.default_rng(1).integers(0, 320, 32).tolist()
        with pygpt.Model(report.path) as own:
            assert np.abs(own.logits(ids) - model.logits(ids)).max() < F32
    shutil.rmtree(folder)
