"""The models of Karpathy's lecture become GGUF files that hold the same numbers and compute the same logits."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from pygpt.convert import SOURCES, bigram, convert_checkpoint, lecture, load  # noqa: E402
from pygpt.convert.checkpoint import Input, Options  # noqa: E402
from reference.lecture import BigramLanguageModel, Config, logits, random_gpt, randomise, sample  # noqa: E402
from reference.nanogpt_checkpoint import save_meta  # noqa: E402
from test_convert_nanogpt import File  # noqa: E402

import pygpt  # noqa: E402

# Largest difference in logits whose spread is about 4. Rounding makes 8e-5 at most, any mutation 0.02 at least.
F32 = 2e-4
SHAPES = {
    "three heads of 16": Config(),
    "heads that do not make up the width": Config(n_embd=172, n_head=3),
    "heads of 8, deep": Config(n_embd=32, n_head=4, n_layer=5),
    "one head, odd vocabulary": Config(n_embd=20, n_head=1, n_layer=1, n_vocab=131),
    "the lecture's width": Config(n_embd=384, n_head=6, n_layer=1, n_ctx=64),
}


def text(n_vocab: int, n: int = 1) -> str:
    return "".join(chr(0x100 + i) for i in range(n_vocab)) * n


def save(tmp_path, value, n_vocab: int = 65, legacy: bool = False):
    """torch.save, with the training text beside it as input.txt."""
    path = tmp_path / "model.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "input.txt").write_text(text(n_vocab), encoding="utf-8")
    return path


def converted(tmp_path, value, n_vocab: int = 65, type: str = "f32", legacy: bool = False, **options):
    path = save(tmp_path, value, n_vocab, legacy)
    return convert_checkpoint(path, type=type, proof=False, **options)


def loaded(path, **options):
    """What the sources make of a file; its tensors can be looked at, not read."""
    with ExitStack() as stack:
        return load(Input(str(path), stack), Options(**options))


def recognised(path, module) -> str | None:
    with ExitStack() as stack:
        return module.recognise(Input(str(path), stack))


def refused(tmp_path, value, match, error=pygpt.Error, **options):
    path = save(tmp_path, value)
    return refused_file(path, match, error, **options)


def refused_file(path, match, error=pygpt.Error, **options):
    before = sorted(path.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        convert_checkpoint(path, proof=False, **options)
    sentence = str(caught.value)
    assert isinstance(caught.value, pygpt.Error) and "\n" not in sentence and len(sentence) < 600, sentence
    assert sorted(path.parent.iterdir()) == before, "something was left behind"
    return sentence


def weights(c: Config = Config(), **changes) -> dict[str, torch.Tensor]:  # noqa: B008
    """A state_dict; changes: tensors by their names with __ for dots, None for none."""
    state = random_gpt(c).state_dict()
    for name, w in changes.items():
        state[name.replace("__", ".")] = w
    return {name: w for name, w in state.items() if w is not None}


def some_ids(c: Config) -> list[int]:
    return np.random.default_rng(1).integers(0, c.n_vocab, c.n_ctx).tolist()


# ---- gpt.py: numbers

NAMES = {  # the lecture's names, GGUF's names
    "sa.proj": "attn_output",
    "ffwd.net.0": "ffn_up",
    "ffwd.net.2": "ffn_down",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
}
TOP = {
    "token_embedding_table": "token_embd",
    "position_embedding_table": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
}


def expected_arrays(state: dict[str, torch.Tensor], c: Config) -> dict[str, np.ndarray]:
    """What the file should hold: what the weights have, by GGUF's names."""
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in TOP.items() for kind in ("weight", "bias")}
    for i in range(c.n_layer):
        for theirs, ours in NAMES.items():
            names |= {f"blocks.{i}.{theirs}.{kind}": f"blk.{i}.{ours}.{kind}" for kind in ("weight", "bias")}
    arrays = {ours: state[theirs].numpy() for theirs, ours in names.items() if theirs in state}
    for i in range(c.n_layer):
        heads = f"blocks.{i}.sa.heads."
        order = [f"{heads}{h}.{part}.weight" for part in ("query", "key", "value") for h in range(c.n_head)]
        arrays[f"blk.{i}.attn_qkv.weight"] = np.concatenate([state[name].numpy() for name in order])
    return arrays


@pytest.mark.parametrize("name", SHAPES)
def test_every_number_arrives(tmp_path, name):
    c = SHAPES[name]
    state = random_gpt(c).state_dict()
    report = converted(tmp_path, state, c.n_vocab)
    found, expected = File(report.path).arrays, expected_arrays(state, c)
    assert sorted(found) == sorted(expected)
    for tensor, array in expected.items():
        assert np.array_equal(found[tensor], array), tensor
    assert report.n_params == sum(w.size for w in expected.values())


def test_the_keys_are_those_of_the_architecture(tmp_path):
    keys = File(converted(tmp_path, weights()).path).keys
    assert {name: value for name, value in keys.items() if not name.startswith(("GGUF.", "pygpt.", "tokenizer."))} == {
        "general.architecture": "gpt",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "gpt.context_length": 32,
        "gpt.embedding_length": 48,
        "gpt.feed_forward_length": 192,
        "gpt.block_count": 2,
        "gpt.attention.head_count": 3,
        "gpt.attention.key_length": 16,
        "gpt.attention.layer_norm_epsilon": np.float32(1e-5),
        "gpt.attention.scale": np.float32(0.25),
        "gpt.activation": "relu",
        "gpt.vocab_size": 65,
    }
    assert keys["pygpt.source"] == "lecture gpt.py" and keys["pygpt.tokenizer.characters"] == list(text(65))


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0"])
def test_heads_are_quantized_as_one_matrix(tmp_path, type):
    c = Config(n_embd=64, n_head=4)
    file = File(converted(tmp_path, weights(c), type=type).path)
    array, expected = file.arrays["blk.1.attn_qkv.weight"], expected_arrays(weights(c), c)["blk.1.attn_qkv.weight"]
    assert file.types["blk.1.attn_qkv.weight"] == type
    assert np.abs(array - expected).max() < {"f16": 2e-3, "q8_0": 2e-2, "q4_0": 0.3}[type]


# ---- gpt.py: how it is saved

WRAPPED = {
    "state_dict": lambda m: m.state_dict(),
    "model": lambda m: {"model": m.state_dict(), "epoch": 3},
    "model_state_dict": lambda m: {"model_state_dict": m.state_dict(), "optimizer": {"state": {}}},
    "whole": lambda m: m,
    "whole in a dictionary": lambda m: {"model": m, "loss": torch.tensor(1.5)},
    "compiled": lambda m: {f"_orig_mod.{name}": w for name, w in m.state_dict().items()},
    "parallel": lambda m: {"state_dict": {f"module._orig_mod.{name}": w for name, w in m.state_dict().items()}},
    "half": lambda m: {name: w.half().float() for name, w in m.state_dict().items()},
}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_every_way_to_save_it_is_recognised(tmp_path, wrap, legacy):
    model = random_gpt(Config())
    path = save(tmp_path, WRAPPED[wrap](model), legacy=legacy)
    assert recognised(path, lecture) == "token_embedding_table.weight and blocks.0.sa.heads.0.key.weight"
    found = File(convert_checkpoint(path, type="f32", proof=False).path).arrays
    for name, array in expected_arrays(model.state_dict(), Config()).items():
        assert np.allclose(found[name], array, atol=1e-3 if wrap == "half" else 0), name


def test_a_norm_that_is_the_last_of_the_blocks_is_the_final_one(tmp_path):
    """As the lecture had it before ln_f."""
    state = random_gpt(Config()).state_dict()
    for kind in ("weight", "bias"):
        state[f"blocks.2.{kind}"] = state.pop(f"ln_f.{kind}")
    found = File(converted(tmp_path, state).path)
    assert np.array_equal(found.arrays["output_norm.weight"], state["blocks.2.weight"].numpy())
    assert np.array_equal(found.arrays["output_norm.bias"], state["blocks.2.bias"].numpy())
    assert found.keys["gpt.block_count"] == 2 and len(found.arrays) == 2 + 2 * 11 + 4


# ---- gpt.py: logits


def twin_logits(c: Config, state, ids) -> np.ndarray:
    """Those of the twin with other weights; biases and tensors that are not in them are zeros."""
    model = random_gpt(c)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(state, strict=False)
    return logits(model, ids).numpy()


@pytest.mark.parametrize("scale", ["head", "width", 0.11])
@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_computes_what_the_twin_computes(tmp_path, name, scale):
    c = replace(SHAPES[name], scale=scale)
    report = converted(tmp_path, random_gpt(c).state_dict(), c.n_vocab, attention_scale=scale)
    with pygpt.Model(report.path) as model:
        assert np.abs(model.logits(some_ids(c)) - logits(random_gpt(c), some_ids(c)).numpy()).max() < F32


def without(*endings):
    return lambda state: {name: w for name, w in state.items() if not name.endswith(endings)}


def exchanged(a, b):
    def change(state):
        first = {name: w for name, w in state.items() if a in name}
        return state | {name: state[name.replace(a, b)] for name in first} | {
            name.replace(a, b): w for name, w in first.items()
        }  # fmt: skip

    return change


def rolled(name):
    return lambda state: {key: w.roll(1, 0) if key.endswith(name) else w for key, w in state.items()}


LEFT_OUT = (
    *("sa.proj.bias", "ffwd.net.0.bias", "ffwd.net.2.bias", "lm_head.bias", "ln1.bias", "ln2.bias", "ln_f.bias"),
    *("query.weight", "value.weight", "sa.proj.weight", "ffwd.net.2.weight", "position_embedding_table.weight"),
)
ROLLED = ("ln1.weight", "ln2.weight", "ln_f.weight", "position_embedding_table.weight")
MUTATIONS = {
    **{f"no {name}": without(name) for name in LEFT_OUT},
    **{f"rolled {name}": rolled(name) for name in ROLLED},
    "heads in another order": exchanged("heads.0.", "heads.1."),
    "values of other heads": exchanged("heads.0.value", "heads.2.value"),
    "queries and values exchanged": exchanged("query", "value"),
    "layers exchanged": exchanged("blocks.0.", "blocks.1."),
    "a tied head": lambda state: state | {"lm_head.weight": state["token_embedding_table.weight"]},
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> np.ndarray:
    """The engine's logits of the model that is changed below."""
    path = converted(tmp_path_factory.mktemp("lecture"), weights()).path
    with pygpt.Model(path) as model:
        return model.logits(some_ids(Config()))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_whatever_is_changed_in_the_weights_moves_the_logits(engines, mutation):
    c, state = Config(), weights()
    assert np.abs(engines - twin_logits(c, state, some_ids(c))).max() < F32
    assert np.abs(engines - twin_logits(c, MUTATIONS[mutation](state), some_ids(c))).max() > 100 * F32


@pytest.mark.parametrize("change", [{"scale": "width"}, {"scale": 0.24}, {"activation": "gelu_erf"}], ids=str)
def test_what_the_weights_do_not_say_moves_the_logits(engines, change):
    c = Config()
    assert np.abs(engines - twin_logits(replace(c, **change), weights(), some_ids(c))).max() > 100 * F32


BIASES = [("lm_head.bias",), ("sa.proj.bias",), ("ln1.bias", "ln2.bias", "ln_f.bias"), (".bias",)]


@pytest.mark.parametrize("absent", BIASES, ids=str)
def test_biases_that_the_model_does_not_have_are_left_out(tmp_path, absent):
    c = Config()
    state = without(*absent)(random_gpt(c).state_dict())
    report = converted(tmp_path, state)
    with pygpt.Model(report.path) as model:
        assert np.abs(model.logits(some_ids(c)) - twin_logits(c, state, some_ids(c))).max() < F32
    assert sorted(File(report.path).arrays) == sorted(expected_arrays(state, c))


def test_heads_may_have_biases(tmp_path):
    c = Config()
    model = random_gpt(c)
    for block in model.blocks:
        for head in block.sa.heads:
            for part in ("key", "query", "value"):
                getattr(head, part).bias = torch.nn.Parameter(torch.randn(16))
    report = converted(tmp_path, model.state_dict())
    with pygpt.Model(report.path) as engine:
        assert np.abs(engine.logits(some_ids(c)) - logits(model, some_ids(c)).numpy()).max() < F32


# ---- gpt.py: what it does not say


def test_the_scale_is_a_question(tmp_path):
    path = save(tmp_path, weights())
    checkpoint = loaded(path)
    (question,) = checkpoint.questions
    assert [answer.name for answer in question.answers] == ["head", "width"]
    assert [answer.keys for answer in question.answers] == [
        {"gpt.attention.scale": 16**-0.5},
        {"gpt.attention.scale": 48**-0.5},
    ]
    assert question.option == "--attention-scale" and question.has_default and "2023-01-27" in question.why
    assert "gpt.attention.scale" not in checkpoint.keys


def test_with_a_head_of_the_whole_width_there_is_no_question(tmp_path):
    checkpoint = loaded(save(tmp_path, weights(Config(n_head=1))))
    assert not checkpoint.questions and checkpoint.keys["gpt.attention.scale"] == 48**-0.5


@pytest.mark.parametrize(("option", "scale"), [("head", 0.25), ("width", 48**-0.5), ("0.5", 0.5), ("1e-3", 1e-3)])
def test_the_option_answers_it(tmp_path, option, scale):
    checkpoint = loaded(save(tmp_path, weights()), attention_scale=option)
    assert not checkpoint.questions and checkpoint.keys["gpt.attention.scale"] == scale
    assert any("as the option says" in line for line in checkpoint.assumptions)


@pytest.mark.parametrize("option", ["0", "-1", "nan", "inf", "1e39", "1e-46", "heads", ""])
def test_other_scales_are_refused(tmp_path, option):
    match = f"--attention-scale to be head, width or a positive number, found '{option}'"
    refused(tmp_path, weights(), match, ValueError, attention_scale=option)


def written_by(model, c: Config, path):
    """A text that the model itself wrote, and the vocabulary as a meta.pkl: the options that name them."""
    path.with_name("text.txt").write_text("".join(chr(0x100 + id) for id in sample(model, 1500, c.n_ctx, c.n_vocab)))
    return {"text": path.with_name("text.txt"), "meta": save_meta(path.with_name("meta.pkl"), text(c.n_vocab))}


def test_the_scale_is_found_out_on_text(tmp_path):
    c = Config(scale="width")
    model = random_gpt(c)
    path = save(tmp_path, model.state_dict())
    report = convert_checkpoint(path, type="f32", **written_by(model, c, path))
    assert any("scale is width: " in line for line in report.assumptions), report.assumptions
    with pygpt.Model(report.path) as engine:
        assert np.abs(engine.logits(some_ids(c)) - logits(model, some_ids(c)).numpy()).max() < F32


def test_relu_is_assumed_and_said(tmp_path):
    checkpoint = loaded(save(tmp_path, weights()))
    assert checkpoint.keys["gpt.activation"] == "relu" and any("ReLU" in line for line in checkpoint.assumptions)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_gelu_in_the_place_of_relu_is_an_option(tmp_path, gelu):
    c = Config(activation=f"gelu_{gelu}")
    report = converted(tmp_path, random_gpt(c).state_dict(), gelu=gelu)
    with pygpt.Model(report.path) as model:
        assert np.abs(model.logits(some_ids(c)) - logits(random_gpt(c), some_ids(c)).numpy()).max() < F32


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("activation", ["relu", "gelu_erf", "gelu_tanh"])
def test_a_whole_model_says_what_its_layers_compute(tmp_path, activation, legacy):
    c = Config(activation=activation)
    checkpoint = loaded(save(tmp_path, random_gpt(c), legacy=legacy))
    assert checkpoint.keys["gpt.activation"] == activation
    assert not any("ReLU" in line or "GELU" in line for line in checkpoint.assumptions)


def test_a_whole_model_with_another_activation_is_refused(tmp_path):
    model = random_gpt(Config())
    model.blocks[1].ffwd.net[1] = torch.nn.GELU()
    refused(tmp_path, model, "compute one of relu, gelu_erf, gelu_tanh, found 'gelu_erf and relu'")
    for block in model.blocks:
        block.ffwd.net[1] = torch.nn.SiLU()
    refused(tmp_path, model, "compute one of relu, gelu_erf, gelu_tanh, found 'SiLU'")


def test_an_option_that_contradicts_the_file_is_refused(tmp_path):
    refused(tmp_path, random_gpt(Config()), "--gelu erf contradicts .*modules compute relu", ValueError, gelu="erf")
    refused(tmp_path, weights(), "choose erf or tanh", ValueError, gelu="relu")


# ---- gpt.py: what is refused

STAGES = {
    "positions": without("position_embedding_table.weight"),
    "projection after the heads": without("sa.proj.weight", "sa.proj.bias"),
    "second layer in the feed-forward part": without("net.2.weight", "net.2.bias"),
    "LayerNorm in the blocks": without("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"),
    "LayerNorm after the blocks": without("ln_f.weight", "ln_f.bias"),
    "blocks of several heads": lambda state: {name: w for name, w in state.items() if not name.startswith("blocks.")},
}


@pytest.mark.parametrize("missing", STAGES)
def test_earlier_stages_are_refused_by_what_they_lack(tmp_path, missing):
    assert "lecture's finished gpt.py" in refused(tmp_path, STAGES[missing](weights()), f"found no .*{missing}")


def test_a_stage_that_lacks_more_is_refused_by_all_of_it(tmp_path):
    state = without("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "ln_f.weight", "ln_f.bias")(weights())
    refused(tmp_path, state, "no LayerNorm in the blocks .* and no LayerNorm after the blocks")


@pytest.mark.parametrize(
    ("name", "w", "match"),
    [
        ("blocks__1__sa__heads__2__value__weight", None, "expected a tensor blocks.1.sa.heads.2.value.weight, .* none"),
        ("blocks__1__ln2__weight", None, "expected a tensor blocks.1.ln2.weight"),
        ("blocks__1__ln2__bias", None, "expected a tensor blocks.1.ln2.bias"),
        ("lm_head__weight", None, "expected a tensor lm_head.weight"),
        ("blocks__1__sa__heads__0__key__weight", torch.zeros(15, 48), r"shape \[16, 48\] .*, found \[15, 48\]"),
        ("blocks__0__sa__proj__weight", torch.zeros(48, 49), r"shape \[48, 48\] .*, found \[48, 49\]"),
        ("lm_head__weight", torch.zeros(66, 48), r"shape \[65, 48\] .*, found \[66, 48\]"),
        ("lm_head__bias", torch.zeros(64), r"shape \[65\] .*, found \[64\]"),
        ("token_embedding_table__weight", torch.zeros(65), r"2 dimensions and none of them empty, found shape \[65\]"),
        ("position_embedding_table__weight", torch.zeros(0, 48), r"found shape \[0, 48\]"),
        ("blocks__0__sa__heads__0__key__weight", torch.zeros(16, 48).long(), "floating-point numbers, found int64"),
        ("blocks__0__sa__heads__3__key__weight", torch.zeros(16, 48), "expected a tensor blocks.0.sa.heads.3.query"),
        ("blocks__1__sa__heads__3__key__weight", torch.zeros(16, 48), "found 'blocks.1.sa.heads.3.key.weight'"),
        ("blocks__0__sa__gate__weight", torch.zeros(1, 48), "nothing else, found 'blocks.0.sa.gate.weight' and 0 more"),
        ("blocks__bias", torch.zeros(48), "nothing else, found 'blocks.bias'"),
        ("extra__tril", torch.zeros(3), "nothing else, found 'extra.tril'"),
        ("blocks__1__ln1__weight", torch.full((48,), float("nan")), "expected finite numbers"),
        ("blocks__1__ln1__weight", torch.ones(1).expand(48), "its storage holds 1; a trained weight has memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tmp_path, name, w, match):
    refused(tmp_path, weights(**{name: w}), match)


@pytest.mark.parametrize(
    "mask", [torch.ones(32, 32), torch.ones(32, 32).tril(1), torch.ones(31, 31).tril(), torch.ones(32, 32).triu()],
    ids=["none", "one too far", "other size", "the other half"],
)  # fmt: skip
def test_another_mask_is_refused(tmp_path, mask):
    state = weights(blocks__1__sa__heads__1__tril=mask)
    refused(
        tmp_path, state, "expected blocks.1.sa.heads.1.tril to let each of 32 positions see itself and those before"
    )


def test_masks_need_not_be_there(tmp_path):
    assert len(File(converted(tmp_path, without(".tril")(weights())).path).arrays) == 2 + 2 * 11 + 4


def test_a_missing_vocabulary_names_one_option(tmp_path):
    path = save(tmp_path, weights())
    (tmp_path / "input.txt").unlink()
    sentence = refused_file(path, "expected the vocabulary of its 65 ids", FileNotFoundError)
    assert [word for word in sentence.split() if word.startswith("--")] == ["--text"]


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    path = save(tmp_path, weights())
    (tmp_path / "few.txt").write_text("abc")
    refused_file(path, "65 different characters, .* found 3", text=tmp_path / "few.txt")


@pytest.mark.parametrize("option", [{"n_head": 3}, {"softcap": 15.0}, {"rope_base": 1e4}], ids=str)
def test_options_of_other_sources_are_refused(tmp_path, option):
    name = next(iter(option)).replace("_", "-")
    refused(tmp_path, weights(), f"--{name} is not for lecture gpt.py", ValueError, **option)


def test_a_gap_in_the_layers_is_named(tmp_path):
    state = weights(Config(n_layer=1))
    state |= {name.replace("blocks.0.", "blocks.9999."): w for name, w in state.items()}
    refused(tmp_path, state, "expected a tensor blocks.1.sa.heads.0.query.weight")


# ---- bigram.py


def table(n: int = 65) -> torch.nn.Module:
    return randomise(BigramLanguageModel(n))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_bigram_arrives_however_it_was_saved(tmp_path, wrap, legacy):
    model = table()
    path = save(tmp_path, WRAPPED[wrap](model), legacy=legacy)
    assert recognised(path, bigram) == "token_embedding_table.weight" and not recognised(path, lecture)
    report = convert_checkpoint(path, type="f32", proof=False)
    file, expected = File(report.path), model.token_embedding_table.weight.detach().numpy()
    assert list(file.arrays) == ["token_embd.weight"] and report.n_params == 65 * 65
    assert np.allclose(file.arrays["token_embd.weight"], expected, atol=1e-3 if wrap == "half" else 0)
    assert file.keys["general.architecture"] == "bigram" and file.keys["pygpt.source"] == "lecture bigram.py"
    assert file.keys["bigram.context_length"] == 1024 and file.keys["bigram.vocab_size"] == 65


@pytest.mark.parametrize("n", [1, 65, 256])
def test_the_logits_of_a_bigram_are_the_row_of_the_last_id(tmp_path, n):
    model, ids = table(n), np.random.default_rng(1).integers(0, n, 40).tolist()
    with pygpt.Model(converted(tmp_path, model.state_dict(), n).path) as engine:
        found, expected = engine.logits(ids), logits(model, ids).numpy()
    assert np.array_equal(found, expected)
    turned = BigramLanguageModel(n)
    turned.token_embedding_table.weight = torch.nn.Parameter(model.token_embedding_table.weight.T)
    assert n == 1 or np.abs(found - logits(turned, ids).numpy()).max() > 100 * F32


@pytest.mark.parametrize("shape", [(65, 64), (0, 0), (65,), (65, 65, 1)], ids=str)
def test_a_table_that_is_not_square_is_refused(tmp_path, shape):
    state = {"token_embedding_table.weight": torch.zeros(*shape)}
    assert str(list(shape)) in refused(tmp_path, state, "expected token_embedding_table.weight to be square")


def test_a_table_of_whole_numbers_is_refused(tmp_path):
    state = {"token_embedding_table.weight": torch.zeros(65, 65).long()}
    refused(tmp_path, state, "floating-point numbers, found int64")


def test_options_that_change_nothing_in_a_bigram_are_refused(tmp_path):
    for option in ({"gelu": "erf"}, {"attention_scale": "head"}, {"n_head": 1}):
        refused(tmp_path, table().state_dict(), "is not for lecture bigram.py", ValueError, **option)


# ---- the others


def test_nobody_else_takes_them_and_they_take_nobody_else(tmp_path):
    from importlib import import_module

    modules = {name: import_module("pygpt.convert." + module) for name, module in SOURCES.items()}
    cases = {"lecture gpt.py": weights(), "lecture bigram.py": table().state_dict()}
    for expected, state in cases.items():
        path = save(tmp_path, state)
        assert [name for name, module in modules.items() if recognised(path, module)] == [expected]
