"""minGPT's models, old and new, and nanoGPT's weights in other files than its own: numbers, logits, what is asked."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from pygpt.convert import SOURCES, build_nanogpt, convert_checkpoint, mingpt  # noqa: E402
from pygpt.convert.checkpoint import Input, Options  # noqa: E402
from pygpt.convert.open_questions import MOST_TRIED, find_heads, possible_heads  # noqa: E402
from pygpt.convert.pickled_module import modules  # noqa: E402
from reference import gpt as nanogpt  # noqa: E402
from reference.lecture import logits  # noqa: E402
from reference.mingpt import Config, as_conv1d, random_gpt  # noqa: E402
from test_convert_lecture import (  # noqa: E402
    WRAPPED,
    converted,
    loaded,
    recognised,
    refused,
    refused_file,
    rolled,
    save,
    some_ids,
    without,
    written_by,
)
from test_convert_nanogpt import File, gguf_name  # noqa: E402

import pygpt  # noqa: E402

# Largest difference in logits whose spread is about 4. Rounding makes 8e-5 at most, the other GELU 2e-3 at least.
F32 = 2e-4
SHAPES = {
    "three heads of 16": Config(),
    "width that no block divides": Config(n_embd=172, n_head=4),
    "gpt-mini's width": Config(n_embd=192, n_head=6, n_layer=1),
    "one head, odd vocabulary": Config(n_embd=20, n_head=1, n_layer=1, n_vocab=131),
    "deep": Config(n_embd=32, n_head=4, n_layer=11),
}
LAYOUTS = ("new", "conv1d", "old")
MASKS = (".attn.bias", ".attn.mask")


def weights(c: Config, layout: str = "new", **changes) -> dict[str, torch.Tensor]:
    """A state_dict; changes: tensors by their names with __ for dots, None for none."""
    state = random_gpt(c, layout == "old").state_dict()
    state = as_conv1d(state) if layout == "conv1d" else dict(state)
    state |= {name.replace("__", "."): w for name, w in changes.items()}
    return {name: w for name, w in state.items() if w is not None}


def nanogpt_weights(c: nanogpt.Config | None = None, **changes) -> dict[str, torch.Tensor]:
    """nanoGPT's state_dict."""
    state = nanogpt.random_gpt(c or nanogpt.Config()).state_dict()
    state |= {name.replace("__", "."): w for name, w in changes.items()}
    return {name: w for name, w in state.items() if w is not None}


@dataclass
class GPTConfig:
    """As build-nanogpt pickles it."""

    block_size: int = 32
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 64


def built(config: object = None, **changes) -> dict:
    """What build-nanogpt saves."""
    state = nanogpt_weights(nanogpt.Config(gelu="gelu_tanh"), **changes)
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
    return {"model": state, "config": config or GPTConfig(), "step": 5000, "val_loss": 3.25}


# ---- numbers

OLD_NAMES = {
    "ln1": "attn_norm",
    "attn.proj": "attn_output",
    "ln2": "ffn_norm",
    "mlp.0": "ffn_up",
    "mlp.2": "ffn_down",
}


def expected_arrays(c: Config, layout: str) -> dict[str, np.ndarray]:
    state = {name: w.numpy() for name, w in weights(c, "old" if layout == "old" else "new").items()}
    if layout != "old":
        return {gguf_name(name): w for name, w in state.items() if not name.endswith(MASKS)}
    names = {"tok_emb.weight": "token_embd.weight", "head.weight": "output.weight"}
    names |= {f"ln_f.{kind}": f"output_norm.{kind}" for kind in ("weight", "bias")}
    arrays = {"position_embd.weight": state["pos_emb"][0]}
    for i in range(c.n_layer):
        for kind in ("weight", "bias"):
            parts = [state[f"blocks.{i}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            arrays[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
            names |= {f"blocks.{i}.{theirs}.{kind}": f"blk.{i}.{ours}.{kind}" for theirs, ours in OLD_NAMES.items()}
    return arrays | {ours: state[theirs] for theirs, ours in names.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_number_arrives(tmp_path, name, layout):
    c = SHAPES[name]
    report = converted(tmp_path, weights(c, layout), c.n_vocab, n_head=c.n_head)
    found, expected = File(report.path).arrays, expected_arrays(c, layout)
    assert sorted(found) == sorted(expected)
    for tensor, array in expected.items():
        assert np.array_equal(found[tensor], array), tensor
    assert report.n_params == sum(w.size for w in expected.values())


@pytest.mark.parametrize(("layout", "gelu"), [("new", "gelu_tanh"), ("conv1d", "gelu_tanh"), ("old", "gelu_erf")])
def test_the_keys_are_those_of_gpt2_and_our_own(tmp_path, layout, gelu):
    report = converted(tmp_path, weights(Config(), layout), n_head=3)
    keys = File(report.path).keys
    assert {name: value for name, value in keys.items() if not name.startswith(("GGUF.", "tokenizer.", "pygpt.t"))} == {
        "general.architecture": "gpt2",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 48,
        "gpt2.feed_forward_length": 192,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 3,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
        "gpt2.vocab_size": 65,
        "pygpt.activation": gelu,
        "pygpt.source": "minGPT",
        "pygpt.assumptions": report.assumptions,
    }
    assert report.summary == "2 layers, 3 heads, 48 wide, context 32, a head of its own"
    assert any("GELU is " + gelu.removeprefix("gelu_") in line and "--gelu" in line for line in report.assumptions)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_every_way_to_save_it_is_recognised(tmp_path, wrap, old, legacy):
    model = random_gpt(Config(), old)
    path = save(tmp_path, WRAPPED[wrap](model), legacy=legacy)
    assert recognised(path, mingpt) and not recognised(path, build_nanogpt)
    options = {} if "whole" in wrap else {"n_head": 3}
    found = File(convert_checkpoint(path, type="f32", proof=False, **options).path).arrays
    for name, array in expected_arrays(Config(), "old" if old else "new").items():
        assert np.allclose(found[name], array, atol=1e-3 if wrap == "half" else 0), name


def test_memory_stays_small_where_matrices_are_turned(tmp_path):
    from test_convert_nanogpt import cost

    state = weights(Config(n_embd=512, n_head=8, n_layer=8), "conv1d")
    path = save(tmp_path, state)
    assert path.stat().st_size > 100e6
    assert cost(path, tmp_path / "out.gguf", n_head=8, proof=False)[1] < 120


# ---- logits


def twin_logits(c: Config, old: bool, state, ids) -> np.ndarray:
    """Those of the twin with other weights; what is not in them is zeros."""
    model = random_gpt(c, old)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(state, strict=False)
    return logits(model, ids).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_computes_what_the_twin_computes(tmp_path, name, layout):
    c = SHAPES[name]
    report = converted(tmp_path, weights(c, layout), c.n_vocab, n_head=c.n_head)
    with pygpt.Model(report.path) as model:
        found = model.logits(some_ids(c))
    assert np.abs(found - logits(random_gpt(c, layout == "old"), some_ids(c)).numpy()).max() < F32


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict[bool, np.ndarray]:
    """The engine's logits of the models that are changed below, by whether they are of the older layout."""
    found = {}
    for old in (False, True):
        state = random_gpt(Config(), old).state_dict()
        with pygpt.Model(converted(tmp_path_factory.mktemp("mingpt"), state, n_head=3).path) as model:
            found[old] = model.logits(some_ids(Config()))
    return found


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("change", [{"gelu": "other"}, {"n_head": 1}, {"n_head": 6}, {"n_head": 4}], ids=str)
def test_what_the_weights_do_not_say_moves_the_logits(engines, change, old):
    if "gelu" in change:
        change = {"gelu": "tanh" if old else "erf"}
    state = random_gpt(Config(), old).state_dict()
    difference = np.abs(engines[old] - twin_logits(replace(Config(), **change), old, state, some_ids(Config()))).max()
    assert difference > (10 if "gelu" in change else 500) * F32


LEFT_OUT = {
    False: (
        *("attn.c_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias", "ln_1.bias", "ln_2.bias"),
        *("ln_f.bias", "wpe.weight", "attn.c_proj.weight", "mlp.c_proj.weight"),
    ),
    True: (
        *("query.bias", "value.bias", "attn.proj.bias", "mlp.0.bias", "mlp.2.bias", "ln1.bias", "ln2.bias"),
        *("ln_f.bias", "pos_emb", "query.weight", "key.weight", "attn.proj.weight", "mlp.2.weight"),
    ),
}
ROLLED = {
    False: (
        "c_attn.weight",
        "c_attn.bias",
        "ln_1.weight",
        "ln_2.weight",
        "ln_f.weight",
        "wpe.weight",
        "lm_head.weight",
    ),
    True: ("query.weight", "value.bias", "ln1.weight", "ln2.weight", "ln_f.weight", "head.weight"),
}
MUTATIONS = [
    *((old, f"no {name}", without(name)) for old, names in LEFT_OUT.items() for name in names),
    *((old, f"rolled {name}", rolled(name)) for old, names in ROLLED.items() for name in names),
]


@pytest.mark.parametrize(("old", "name", "mutation"), MUTATIONS, ids=[f"{'old' * m[0]} {m[1]}" for m in MUTATIONS])
def test_whatever_is_changed_in_the_weights_moves_the_logits(engines, old, name, mutation):
    c = Config()
    state = random_gpt(c, old).state_dict()
    assert np.abs(engines[old] - twin_logits(c, old, state, some_ids(c))).max() < F32
    assert np.abs(engines[old] - twin_logits(c, old, mutation(state), some_ids(c))).max() > 100 * F32


# ---- heads


def heads(path, **options) -> int | list[int]:
    """How many, or the numbers that are asked about."""
    checkpoint = loaded(path, **options)
    asked = [q for q in checkpoint.questions if q.option == "--n-head"]
    return [int(a.name) for a in asked[0].answers] if asked else checkpoint.keys["gpt2.attention.head_count"]


def write_config(tmp_path, **model) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"system": {"seed": 3407}, "model": model, "trainer": {}}))


GPT_MINI = Config(n_embd=192, n_head=6, n_layer=6, n_ctx=8, n_vocab=11)


def test_the_option_names_the_heads(tmp_path):
    path = save(tmp_path, weights(Config()))
    for n_head in (1, 2, 3, 4, 6, 48):
        assert heads(path, n_head=n_head) == n_head
    assert "There are 4 heads, as the option says." in loaded(path, n_head=4).assumptions


@pytest.mark.parametrize("n_head", [5, 7, 96, 1 << 40])
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path, n_head):
    for layout in LAYOUTS:
        match = f"{n_head} heads by --n-head do not divide the width of 48"
        refused(tmp_path, weights(Config(), layout), match, ValueError, n_head=n_head)


@pytest.mark.parametrize("n_head", [0, -3, True, "3", 3.0])
def test_heads_that_are_no_number_are_refused(tmp_path, n_head):
    match = "expected --n-head to be a whole number from 1 on, found"
    refused(tmp_path, weights(Config()), match, ValueError, n_head=n_head)


OPENAIS = [(12, 768, 12), (24, 1024, 16), (36, 1280, 20), (48, 1600, 25)]
PRESETS = [(6, 192, 6), (4, 128, 4), (3, 48, 3), (8, 512, 16)]


def found_heads(tmp_path, n_layer, n_embd, known):
    """What is found out about a model of this size from this table alone."""
    with ExitStack() as stack:
        source = Input(str(save(tmp_path, weights(Config()))), stack)
        return find_heads(source, Options(), (n_layer, n_embd), known)


@pytest.mark.parametrize("known", [mingpt.KNOWN, mingpt.KNOWN_OLD, build_nanogpt.KNOWN], ids=["new", "old", "nanoGPT"])
@pytest.mark.parametrize("size", OPENAIS, ids=str)
def test_openais_models_are_known_by_their_size(tmp_path, size, known):
    n_layer, n_embd, n_head = size
    found = found_heads(tmp_path, n_layer, n_embd, known)
    assert found.keys == {"gpt2.attention.head_count": n_head} and not found.questions
    assert f"There are {n_head} heads, as in g" in found.assumptions[0] and "--n-head" in found.assumptions[0]


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_presets_are_asked_about_first(tmp_path, preset):
    n_layer, n_embd, n_head = preset
    (question,) = found_heads(tmp_path, n_layer, n_embd, mingpt.KNOWN).questions
    numbers = [int(answer.name) for answer in question.answers]
    assert numbers[0] == n_head and sorted(numbers) == sorted(possible_heads(n_embd)) and question.has_default
    assert question.why.startswith("as in go" if n_layer == 8 else "as in gpt-")


def test_a_preset_stands_where_nothing_is_tried(tmp_path):
    report = convert_checkpoint(save(tmp_path, weights(GPT_MINI), 11), proof=False)
    assert File(report.path).keys["gpt2.attention.head_count"] == 6
    sentence = "The number of heads is 6, as in gpt-mini; not tried on text (--n-head decides)."
    assert sentence in report.assumptions


@pytest.mark.parametrize(("n_layer", "n_embd", "n_head"), [(8, 512, 8), (2, 128, 4), (12, 256, 8)])
def test_the_older_layouts_notebooks_are_asked_about_first(tmp_path, n_layer, n_embd, n_head):
    """They trained 8 layers of 512 with 8 heads, where the newer layout's gopher-44m has 16."""
    (question,) = found_heads(tmp_path, n_layer, n_embd, mingpt.KNOWN_OLD).questions
    assert question.answers[0].name == str(n_head) and question.has_default and ".ipynb" in question.why
    assert len({answer.name for answer in question.answers}) == len(question.answers) > 4


def test_the_older_layout_has_no_presets_but_gpt2s(tmp_path):
    (question,) = loaded(save(tmp_path, weights(GPT_MINI, "old"), 11)).questions
    assert question.answers[0].name == "3" and not question.has_default
    question = loaded(save(tmp_path, weights(Config(n_embd=128, n_head=4), "old"))).questions[0]
    assert question.why == "as in minGPT's play_math.ipynb" and question.answers[0].name == "4"


@pytest.mark.parametrize(
    ("model", "n_head"),
    [
        ({"model_type": "gpt-mini", "n_layer": None, "n_head": None, "n_embd": None}, 6),
        ({"name": "GPT-Mini", "n_layer": 6, "n_head": 6, "n_embd": 192}, 6),
        ({"model_type": None, "n_layer": 6, "n_head": 12, "n_embd": 192}, 12),
        ({"n_layer": 6, "n_head": 2, "n_embd": 192}, 2),
        ({"model_type": "gpt", "n_layer": 6, "n_head": 3, "n_embd": 192}, 3),
    ],
    ids=str,
)
def test_config_json_says_how_many(tmp_path, model, n_head):
    write_config(tmp_path, **model)
    path = save(tmp_path, weights(GPT_MINI), 11)
    checkpoint = loaded(path)
    assert checkpoint.keys["gpt2.attention.head_count"] == n_head
    assert any(f"{n_head} heads, as {tmp_path / 'config.json'} says" in line for line in checkpoint.assumptions)
    assert heads(path, n_head=4) == 4
    refused_file(path, "config.json: is an input too", out=tmp_path / "config.json")


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"model_type": "gpt-nano"}},
        {"model": {"n_layer": 5, "n_head": 12, "n_embd": 192}},
        {"model": {"n_layer": 6, "n_head": "12", "n_embd": 192}},
        {"model": {"n_layer": 6, "n_head": 0, "n_embd": 192}},
        {"model": {"model_type": ["gpt-nano"]}},
        {"model": {"model_type": "gpt-nano-2"}},
        {"model": "gpt-nano"},
        {"model_type": "gpt2", "n_layer": 6, "n_head": 12, "n_embd": 192},
        {},
    ],
    ids=str,
)
def test_a_config_json_of_another_model_is_not_followed(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert heads(save(tmp_path, weights(GPT_MINI), 11))[:2] == [6, 3]


def test_heads_that_config_json_says_must_divide_the_width(tmp_path):
    write_config(tmp_path, n_layer=6, n_head=5, n_embd=192)
    path = save(tmp_path, weights(GPT_MINI), 11)
    refused_file(path, "5 heads by .*config.json do not divide the width of 192")


def test_a_broken_config_json_is_refused_unless_the_option_names_the_heads(tmp_path):
    (tmp_path / "config.json").write_text("{")
    path = save(tmp_path, weights(GPT_MINI), 11)
    refused_file(path, "config.json: cannot be read as JSON")
    assert heads(path, n_head=6) == 6


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_a_whole_model_says_its_heads_and_its_gelu(tmp_path, old, legacy):
    for gelu in ("erf", "tanh"):
        path = save(tmp_path, random_gpt(replace(GPT_MINI, n_head=4, gelu=gelu), old), 11, legacy=legacy)
        checkpoint = loaded(path)
        assert checkpoint.keys["gpt2.attention.head_count"] == 4 and not checkpoint.questions
        assert checkpoint.keys["pygpt.activation"] == f"gelu_{gelu}" and not checkpoint.assumptions
    assert heads(path, n_head=4) == 4
    refused_file(path, "--n-head 6 contradicts .*, which has n_head 4; leave it out", ValueError, n_head=6)
    refused_file(path, "--gelu erf contradicts .*modules compute gelu_tanh", ValueError, gelu="erf")


def test_a_whole_model_of_different_heads_or_activations_is_refused(tmp_path):
    model = random_gpt(Config())
    model.transformer.h[1].attn.n_head = 6
    refused(tmp_path, model, "as many heads in each layer, found 3 and 6")
    model = random_gpt(Config())
    for block in model.transformer.h:
        block.mlp.act = torch.nn.ReLU()
    refused(tmp_path, model, "compute one of gelu_erf, gelu_tanh, found 'relu'")


@pytest.mark.parametrize(
    ("n_embd", "expected"),
    [
        (384, [6, 12, 8, 4, 3, 2, 1, 16, 24, 32, 48]),
        (256, [4, 8, 2, 1, 16, 32]),
        (96, [3, 2, 1, 4, 6, 8, 12, 16, 24, 32, 48, 96]),
        (172, [2, 1, 4, 43, 86, 172]),
        (32, [1, 2, 4, 8, 16, 32]),
        (14, [1, 2, 7, 14]),
    ],
)
def test_without_any_hint_the_heads_are_asked_for(tmp_path, n_embd, expected):
    checkpoint = loaded(save(tmp_path, weights(Config(n_embd=n_embd, n_head=1))))
    (question,) = checkpoint.questions
    assert [int(answer.name) for answer in question.answers] == expected
    assert all(answer.keys == {"gpt2.attention.head_count": int(answer.name)} for answer in question.answers)
    assert question.option == "--n-head" and not question.has_default
    assert "gpt2.attention.head_count" not in checkpoint.keys
    assert all(n_embd % n == 0 for n in expected) and (n_embd < 256 or n_embd // max(expected) >= 8)


@pytest.mark.parametrize(("n_embd", "least"), [(180, 3), (240, 5), (360, 10), (720, 24), (960, 24)])
def test_a_width_of_many_divisors_is_not_tried_with_all_of_them(n_embd, least):
    numbers = possible_heads(n_embd)
    assert len(set(numbers)) == len(numbers) == MOST_TRIED
    assert n_embd // max(numbers) == least and {1, 2, 3, 4, 5, 6, 12} <= set(numbers)


@pytest.mark.parametrize("n_embd", [1, 257])
def test_where_only_one_head_is_possible_it_is_not_asked(tmp_path, n_embd):
    checkpoint = loaded(save(tmp_path, weights(Config(n_embd=n_embd, n_head=1))))
    assert checkpoint.keys["gpt2.attention.head_count"] == 1 and not checkpoint.questions
    assert any("There is one head" in line for line in checkpoint.assumptions)


def test_without_text_the_option_must_name_the_heads(tmp_path):
    sentence = refused(tmp_path, weights(Config(n_embd=96)), "number of heads is not in the checkpoint")
    assert [word for word in sentence.split() if word.startswith("--")] == ["--n-head"]


def test_the_heads_are_found_out_on_text(tmp_path):
    c = Config(n_embd=96, n_head=4)
    model = random_gpt(c)
    path = save(tmp_path, model.state_dict())
    report = convert_checkpoint(path, type="f32", **written_by(model, c, path))
    assert any("number of heads is 4: " in line for line in report.assumptions), report.assumptions
    with pygpt.Model(report.path) as engine:
        assert np.abs(engine.logits(some_ids(c)) - logits(model, some_ids(c)).numpy()).max() < F32


TRAINED_WITH = {  # what would be assumed, did not the text speak against it
    "heads of 4": Config(n_embd=32, n_head=8),
    "heads of 2, less than 16 wide": Config(n_embd=14, n_head=7),
    "gpt-nano's size": Config(n_layer=3, n_head=6),
}


@pytest.mark.parametrize("name", TRAINED_WITH)
def test_narrow_models_may_have_been_trained_with_any_heads(tmp_path, name):
    c = TRAINED_WITH[name]
    model = random_gpt(c)
    path = save(tmp_path, model.state_dict())
    report = convert_checkpoint(path, type="f32", **written_by(model, c, path))
    assert any(f"number of heads is {c.n_head}: " in line for line in report.assumptions), report.assumptions
    with pygpt.Model(report.path) as engine:
        assert np.abs(engine.logits(some_ids(c)) - logits(model, some_ids(c)).numpy()).max() < F32


# ---- settings that are not followed


def test_settings_that_only_a_changed_model_has_are_said(tmp_path):
    config = asdict(GPTConfig()) | {"activation": "relu", "n_kv_head": 1}
    checkpoint = loaded(save(tmp_path, built(config)))
    said = (
        "Its settings also name 'activation', 'n_kv_head', which are unknown to nanoGPT, build-nanogpt or llm.c; they"
    )
    assert any(line.startswith(said) for line in checkpoint.assumptions), checkpoint.assumptions
    many = {f"s{i}": 1 for i in range(9)} | {"x" * 10_000: 1, "line\nline": 1}
    (line,) = (a for a in loaded(save(tmp_path, built(asdict(GPTConfig()) | many))).assumptions if "settings" in a)
    assert "'s4' and 6 more, which are" in line and "\n" not in line and len(line) < 300


MINGPT_CONFIG = {"model_type": None, "n_layer": 2, "n_head": 3, "n_embd": 48, "vocab_size": 65, "block_size": 32}
MINGPT_CONFIG |= {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_mingpts_own_settings_are_known(tmp_path):
    for more, says in (({}, []), ({"rotary": True}, ["'rotary', which is unknown to minGPT; it was not followed."])):
        model = random_gpt(Config())
        model.config = SimpleNamespace(**MINGPT_CONFIG, **more)
        lines = [line for line in loaded(save(tmp_path, model)).assumptions if "settings" in line]
        assert [line.removeprefix("Its settings also name ") for line in lines] == says


def test_nanogpts_settings_of_training_say_nothing_of_the_model(tmp_path):
    training = {"out_dir": "out", "eval_interval": 250, "init_from": "scratch", "learning_rate": 1e-3, "dropout": 0.2}
    for config in (asdict(GPTConfig()) | training, asdict(GPTConfig()) | {"dropout": 0.0, "bias": True}):
        assert not any("settings" in line for line in loaded(save(tmp_path, built(config))).assumptions)


# ---- GELU


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gelu_can_be_chosen(tmp_path, layout, gelu):
    checkpoint = loaded(save(tmp_path, weights(Config(), layout)), n_head=3, gelu=gelu)
    assert checkpoint.keys["pygpt.activation"] == f"gelu_{gelu}"
    assert f"The GELU is {gelu}, as the option says." in checkpoint.assumptions


def test_there_is_no_third_gelu(tmp_path):
    for value in (weights(Config()), weights(Config(), "old"), built(), nanogpt_weights()):
        refused(tmp_path, value, "choose erf or tanh", ValueError, gelu="relu")


# ---- build-nanogpt


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
def test_build_nanogpts_checkpoint_arrives(tmp_path, legacy):
    path = save(tmp_path, built(), legacy=legacy)
    assert recognised(path, build_nanogpt) == "transformer.h.0.attn.c_attn.weight and a config beside it"
    report = convert_checkpoint(path, type="f32", proof=False)
    file = File(report.path)
    for name, w in nanogpt_weights().items():
        if name != "lm_head.weight":
            assert np.array_equal(file.arrays.pop(gguf_name(name)), w.numpy()), name
    assert not file.arrays
    assert file.keys["gpt2.attention.head_count"] == 2 and file.keys["pygpt.activation"] == "gelu_tanh"
    assert report.source == "build-nanogpt" and report.summary == "2 layers, 2 heads, 64 wide, context 32, tied head"
    assert "The GELU is tanh, as in build-nanogpt (--gelu erf if not)." in report.assumptions


def test_the_engine_computes_what_build_nanogpt_computes(tmp_path):
    c = nanogpt.Config(gelu="gelu_tanh")
    ids = np.random.default_rng(1).integers(0, 65, 32).tolist()
    with pygpt.Model(converted(tmp_path, built()).path) as model:
        found = model.logits(ids)
    assert np.abs(found - nanogpt.random_gpt(c).logits(ids).numpy()).max() < F32
    for change in ({"gelu": "gelu_erf"}, {"n_head": 4}):
        other = nanogpt.random_gpt(replace(c, **change))
        assert np.abs(found - other.logits(ids).numpy()).max() > 10 * F32


@pytest.mark.parametrize(
    "config", [asdict(GPTConfig()), SimpleNamespace(**asdict(GPTConfig())), torch.nn.Module()], ids=str
)
def test_a_config_may_be_of_other_kinds(tmp_path, config):
    if isinstance(config, torch.nn.Module):
        vars(config).update(asdict(GPTConfig()))
    assert loaded(save(tmp_path, built(config))).keys["gpt2.attention.head_count"] == 2


@pytest.mark.parametrize("n_vocab", [50257, 50304])
def test_gpt2s_vocabulary_is_taken_for_its_sizes(tmp_path, n_vocab):
    c = nanogpt.Config(n_embd=8, n_layer=1, vocab_size=n_vocab, gelu="gelu_tanh")
    value = {"model": nanogpt.random_gpt(c).state_dict(), "config": GPTConfig(32, n_vocab, 1, 2, 8)}
    checkpoint = loaded(save(tmp_path, value))
    assert checkpoint.vocabulary.keys["tokenizer.ggml.model"] == "gpt2"
    assert len(checkpoint.vocabulary.keys["tokenizer.ggml.tokens"]) == n_vocab


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"n_head": 3}, "3 heads by its n_head do not divide the width of 64"),
        ({"n_head": "2"}, "n_head to be a whole number from 1 to 10000, found '2'"),
        ({"n_head": 0}, "n_head to be a whole number from 1 to 10000, found 0"),
        ({"n_layer": 3}, "config says n_layer 3, but its weights are of 2"),
        ({"n_embd": 128}, "config says n_embd 128, but its weights are of 64"),
        ({"block_size": 64}, "config says block_size 64, but its weights are of 32"),
        ({"vocab_size": 50304}, "config says vocab_size 50304, but its weights are of 65"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, config, match):
    refused(tmp_path, built(replace(GPTConfig(), **config)), match)


def test_heads_that_contradict_the_config_are_refused(tmp_path):
    refused(tmp_path, built(), "--n-head 4 contradicts .*, which has n_head 2; leave it out", ValueError, n_head=4)


# ---- nanoGPT's weights alone


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_weights_alone_arrive(tmp_path, bias):
    c = nanogpt.Config(bias=bias)
    report = converted(tmp_path, nanogpt_weights(c), n_head=2, gelu="erf")
    file = File(report.path)
    for name, w in nanogpt_weights(c).items():
        if name != "lm_head.weight":
            assert np.array_equal(file.arrays.pop(gguf_name(name)), w.numpy()), name
    assert all(name.endswith(".bias") and not array.any() for name, array in file.arrays.items())
    assert len(file.arrays) == (0 if bias else 2 * 6 + 1)
    assert report.source == ("nanoGPT, build-nanogpt or llm.c" if bias else "nanoGPT")
    ids = np.random.default_rng(1).integers(0, 65, 32).tolist()
    with pygpt.Model(report.path) as model:
        assert np.abs(model.logits(ids) - nanogpt.random_gpt(c).logits(ids).numpy()).max() < F32


TIES = {
    "one memory": nanogpt_weights,
    "equal": lambda: nanogpt_weights(lm_head__weight=nanogpt_weights()["lm_head.weight"].clone()),
    "absent": lambda: nanogpt_weights(lm_head__weight=None),
    "no masks": lambda: nanogpt_weights(lm_head__weight=torch.randn(65, 64)),
}


@pytest.mark.parametrize("tie", TIES)
def test_weights_alone_ask_for_heads_and_gelu(tmp_path, tie):
    path = save(tmp_path, TIES[tie]())
    assert recognised(path, build_nanogpt) == "transformer.h.0.attn.c_attn.weight and no settings beside it"
    assert not recognised(path, mingpt)
    checkpoint = loaded(path)
    n_head, gelu = checkpoint.questions
    assert [answer.name for answer in n_head.answers] == [
        "1",
        "2",
        "4",
        "8",
        "16",
        "32",
        "64",
    ] and not n_head.has_default
    assert [answer.keys for answer in gelu.answers] == [
        {"pygpt.activation": "gelu_erf"},
        {"pygpt.activation": "gelu_tanh"},
    ]
    assert gelu.option == "--gelu" and gelu.has_default and "2023-06-14" in gelu.why
    assert ("output.weight" in checkpoint.tensors) == (tie == "no masks")
    assert not loaded(path, n_head=2, gelu="tanh").questions


@pytest.mark.parametrize(("n_layer", "n_embd", "n_head"), [(6, 384, 6), (4, 128, 4)])
def test_nanogpts_usual_sizes_are_asked_about_first(tmp_path, n_layer, n_embd, n_head):
    c = nanogpt.Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head, bias=False)
    question = loaded(save(tmp_path, nanogpt_weights(c))).questions[0]
    assert question.answers[0].name == str(n_head) and question.has_default and "nanoGPT" in question.why


def whole(bias: bool | None, **changes):
    """A model that was pickled whole, as nanoGPT's is."""
    model = nanogpt.random_gpt(nanogpt.Config())
    fields = asdict(GPTConfig()) | {"dropout": 0.0} | ({} if bias is None else {"bias": bias}) | changes
    model.config = SimpleNamespace(**fields)
    return model


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])
def test_a_whole_nanogpt_says_its_heads(tmp_path, legacy):
    checkpoint = loaded(save(tmp_path, whole(True), legacy=legacy))
    assert checkpoint.source == "nanoGPT" and checkpoint.keys["gpt2.attention.head_count"] == 2
    assert [[answer.name for answer in question.answers] for question in checkpoint.questions] == [["erf", "tanh"]]
    checkpoint = loaded(save(tmp_path, whole(None), legacy=legacy))
    assert [[answer.name for answer in question.answers] for question in checkpoint.questions] == [["tanh", "erf"]]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_whole_nanogpt_may_say_its_gelu(tmp_path, approximate):
    model = whole(True)
    for block in model.transformer.h:
        block.mlp.gelu = torch.nn.GELU(approximate)
    checkpoint = loaded(save(tmp_path, model))
    assert checkpoint.keys["pygpt.activation"] == f"gelu_{'erf' if approximate == 'none' else 'tanh'}"
    assert not checkpoint.questions and not checkpoint.assumptions


# ---- what is refused

BROKEN = [
    ("new", "transformer__h__1__ln_2__weight", None, "expected a tensor transformer.h.1.ln_2.weight"),
    ("new", "transformer__h__1__mlp__c_fc__bias", None, "expected a tensor transformer.h.1.mlp.c_fc.bias"),
    ("new", "transformer__wpe__weight", None, "expected a tensor transformer.wpe.weight, as minGPT has it"),
    ("new", "transformer__ln_f__bias", None, "expected a tensor transformer.ln_f.bias"),
    ("new", "transformer__h__0__mlp__c_fc__weight", None, "expected a tensor transformer.h.0.mlp.c_fc.weight"),
    ("new", "transformer__h__1__attn__c_proj__weight", torch.zeros(48, 47), r"shape \[48, 48\] .*, found \[48, 47\]"),
    ("new", "lm_head__weight", torch.zeros(64, 48), r"lm_head.weight to have shape \[65, 48\] .*, found \[64, 48\]"),
    ("new", "lm_head__bias", torch.zeros(65), "nothing else, found 'lm_head.bias'"),
    ("new", "transformer__h__7__ln_1__weight", torch.zeros(48), "expected a tensor transformer.h.2.ln_1.weight"),
    (
        "new",
        "transformer__h__1__attn__bias",
        torch.ones(1, 1, 32, 32),
        "expected transformer.h.1.attn.bias to let each",
    ),
    ("new", "transformer__h__1__attn__bias", torch.ones(1, 1, 33, 33).tril(), "attn.bias to let each of 32 positions"),
    ("new", "transformer__h__1__attn__bias", torch.zeros(48), "nothing else, found 'transformer.h.1.attn.bias'"),
    ("new", "transformer__wte__weight", torch.zeros(65, 48).long(), "floating-point numbers, found int64"),
    ("new", "transformer__wpe__weight", torch.zeros(0, 48), r"none of them empty, found shape \[0, 48\]"),
    ("conv1d", "transformer__h__1__mlp__c_fc__weight", torch.zeros(192, 48), r"\[48, 192\] .*, found \[192, 48\]"),
    ("old", "blocks__1__attn__value__bias", None, "expected a tensor blocks.1.attn.value.bias"),
    ("old", "head__weight", None, "expected a tensor head.weight"),
    ("old", "blocks__0__mlp__0__weight", None, "expected a tensor blocks.0.mlp.0.weight"),
    ("old", "pos_emb", torch.zeros(32, 48), r"pos_emb to have 3 dimensions .*, found shape \[32, 48\]"),
    ("old", "pos_emb", torch.zeros(2, 32, 48), r"pos_emb to have shape \[1, 32, 48\] .*, found \[2, 32, 48\]"),
    ("old", "head__bias", torch.zeros(65), "nothing else, found 'head.bias'"),
    ("old", "blocks__0__attn__mask", torch.ones(1, 1, 32, 32), "expected blocks.0.attn.mask to let each of 32"),
    ("old", "blocks__1__attn__key__weight", torch.zeros(24, 48), r"shape \[48, 48\] .*, found \[24, 48\]"),
]


@pytest.mark.parametrize(("layout", "name", "w", "match"), BROKEN, ids=[f"{b[0]} {b[3]}" for b in BROKEN])
def test_weights_that_do_not_fit_are_refused(tmp_path, layout, name, w, match):
    refused(tmp_path, weights(Config(), layout, **{name: w}), match, n_head=3)


def test_weights_of_build_nanogpt_that_do_not_fit_are_refused(tmp_path):
    refused(tmp_path, built(transformer__h__1__ln_1__bias=None), "transformer.h.1.ln_1.bias, as build-nanogpt has it")
    refused(tmp_path, built(extra__weight=torch.zeros(1)), "nothing else, found 'extra.weight'")
    refused(tmp_path, nanogpt_weights(transformer__ln_f__weight=None), "expected a tensor transformer.ln_f.weight")
    state = nanogpt_weights(transformer__h__1__attn__c_attn__bias=None, transformer__h__0__attn__c_attn__bias=None)
    refused(tmp_path, state, "expected the tensors of nanoGPT and nothing else, found 'transformer.h.0.ln_1.bias'")


@pytest.mark.parametrize("value", [weights(Config()), weights(Config(), "old"), built(), nanogpt_weights()],
                         ids=["new", "old", "build-nanogpt", "nanoGPT"])  # fmt: skip
def test_a_missing_vocabulary_names_one_option(tmp_path, value):
    path = save(tmp_path, value)
    (tmp_path / "input.txt").unlink()
    sentence = refused_file(path, "expected the vocabulary of its 65 ids", FileNotFoundError)
    assert [word for word in sentence.split() if word.startswith("--")] == ["--text"]
    (tmp_path / "few.txt").write_text("abc")
    refused_file(path, "65 different characters, .* found 3", text=tmp_path / "few.txt")


@pytest.mark.parametrize("value", [weights(Config()), built(), nanogpt_weights()], ids=["minGPT", "build", "nanoGPT"])
@pytest.mark.parametrize("option", [{"attention_scale": "head"}, {"softcap": 15.0}, {"rope_base": 1e4}], ids=str)
def test_options_of_other_sources_are_refused(tmp_path, option, value):
    name = next(iter(option)).replace("_", "-")
    refused(tmp_path, value, f"--{name} is not for ", ValueError, **option)


def test_a_model_that_holds_itself_ends(tmp_path):
    """Modules that hold each other twice: as a tree they would be 2 ** 30."""
    model = random_gpt(Config())
    inner = torch.nn.Module()
    for _ in range(30):
        outer = torch.nn.Module()
        outer.a = outer.b = inner
        inner = outer
    model.extra = inner
    with ExitStack() as stack:
        assert len([*modules(Input(str(save(tmp_path, model)), stack).value)]) == 31 + len(
            [*random_gpt(Config()).modules()]
        )


def test_layers_may_share_their_memory_but_cannot_fill_the_disk(tmp_path):
    state = nanogpt_weights(nanogpt.Config(n_layer=1))
    layer = {name.removeprefix("transformer.h.0."): w for name, w in state.items() if ".h.0." in name}

    def of_layers(n):
        return state | {f"transformer.h.{i}.{name}": w for i in range(n) for name, w in layer.items()}

    arrays = File(converted(tmp_path, of_layers(3), n_head=2, gelu="erf").path).arrays
    for name, w in of_layers(3).items():
        assert name == "lm_head.weight" or np.array_equal(arrays[gguf_name(name)], w.numpy()), name
    refused(tmp_path, of_layers(200), "numbers by their shapes, but the file has only", n_head=2, gelu="erf")


# ---- who takes what


def others() -> dict[str, object]:
    """Checkpoints by the source that must take them; None: nobody."""
    gpt = nanogpt.random_gpt(nanogpt.Config())
    untied = nanogpt.random_gpt(nanogpt.Config(tied=False))
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(32, 32).tril().view(1, 1, 32, 32) for i in range(2)}
    hugging = as_conv1d(gpt.state_dict()) | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    return {
        "minGPT": weights(Config()),
        "minGPT of a day": weights(Config(), "conv1d"),
        "minGPT of old": weights(Config(), "old"),
        "nanoGPT": nanogpt.checkpoint(gpt),
        "nanoGPT with masks and a head of its own": nanogpt.checkpoint(untied) | {"model": untied.state_dict() | masks},
        "build-nanogpt": built(),
        "build-nanogpt without config": nanogpt_weights(**masks),
        "build-nanogpt of nanoGPT's module": gpt,
        "None: GPT-2 of transformers": hugging,
        "None: GPT-2 of transformers, untied": hugging | {"lm_head.weight": torch.randn(65, 64)},
        "None: GPT-2 of transformers, no masks": as_conv1d(gpt.state_dict()),
        "None: nanochat": {"transformer.h.0.attn.c_q.weight": torch.zeros(64, 64), **gpt.state_dict(),
                           "transformer.h.0.attn.c_attn.weight": torch.zeros(64, 64)},
        "None: c_attn of other sizes": nanogpt_weights(transformer__h__0__attn__c_attn__weight=torch.zeros(128, 64)),
    }  # fmt: skip


@pytest.mark.parametrize("name", others())
def test_each_checkpoint_is_taken_by_one_source(tmp_path, name):
    path = save(tmp_path, others()[name])
    mine = {"nanoGPT": "nanogpt", "build-nanogpt": "build_nanogpt", "minGPT": "mingpt", "lecture gpt.py": "lecture",
            "lecture bigram.py": "bigram"}  # fmt: skip
    assert mine.items() <= SOURCES.items()
    takers = [source for source, module in mine.items() if recognised(path, import_module("pygpt.convert." + module))]
    assert takers == ([] if name.startswith("None") else [max((s for s in mine if name.startswith(s)), key=len)])
