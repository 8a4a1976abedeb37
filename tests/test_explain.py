"""pygpt explain: the forward pass that it prints is right to the point of being run, and its numbers add up."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf
from reference.llama import Config, keys, random_tensors

from pygpt import _lib, explain, formulas
from pygpt.anatomy import Anatomy
from pygpt.explain import Machine, cache_bytes, cache_of_cpus, limits
from pygpt.formulas import windows
from pygpt.model import BUNDLED, IdModel


def text_of(model, measured=False):
    text = explain.explain(model, measured)
    assert text.endswith("\n") and text.isascii()
    assert all(len(line) <= 100 and line == line.rstrip() and line.isprintable() for line in text.split("\n")), text
    return text


def section(text, begin):
    """The lines from the one that begins so to the next empty one."""
    return re.search(rf"^{re.escape(begin)}.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)[0].splitlines()


def numbers(line):
    return [int(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]*(?![\w.%])", line)]


def gpt2(tmp_path, type="q8_0", tensors=None, n_ctx=24, **extra):
    tensors = tensors or gpt2_tensors(40, n_ctx, 64, 3, np.random.default_rng(1))
    named = gpt2_keys(n_ctx, 64, 3) | character_keys([chr(48 + i) for i in range(40)]) | extra
    return write_gguf(tmp_path / "gpt2.gguf", tensors, named, type)


def nanochat(tmp_path):
    """(the file, its tensors)"""
    draw = np.random.default_rng(2).normal
    V, C, F, L = 40, 64, 256, 4
    tensors = {"token_embd.weight": draw(size=(V, C)), "output.weight": draw(size=(V, C))}
    tensors |= {f"{name}.weight": draw(1, 0.3, L) for name in ("resid_lambdas", "x0_lambdas")}
    single = {"smear_gate": 24, "smear_lambda": 1, "backout_lambda": 1}
    tensors |= {f"{name}.weight": draw(0.5, 0.3, n) for name, n in single.items()}
    for i in range(L):
        shapes = {"attn_q": (C, C), "attn_k": (C // 2, C), "attn_v": (C // 2, C), "attn_output": (C, C)}
        shapes |= {"ffn_up": (F, C), "ffn_down": (C, F)}
        shapes |= {"attn_value_embd": (V, C // 2), "attn_value_gate": (2, 12)} if i % 2 else {}
        tensors |= {f"blk.{i}.{name}.weight": draw(0, 0.2, shape) for name, shape in shapes.items()}
    sizes = {"context_length": 24, "embedding_length": C, "feed_forward_length": F, "block_count": L, "vocab_size": V}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "backout_layer": 2}
    sizes |= {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e5, "attention.qk_scale": 1.2}
    sizes |= {"attention.sliding_window": [5, 5, 0, 24], "final_logit_softcapping": 15.0, "value_gate_scale": 3.0}
    named = {"general.architecture": "nanochat"} | {f"nanochat.{name}": value for name, value in sizes.items()}
    return write_gguf(tmp_path / "nanochat.gguf", tensors, named | {"pygpt.source": "nanochat"}), tensors


def lecture(tmp_path, n_head=2, **extra):
    """(the file, its tensors)"""
    draw = np.random.default_rng(3).normal
    tensors = gpt2_tensors(40, 24, 64, 2, np.random.default_rng(1))
    tensors |= {"output.weight": draw(size=(40, 64)), "output.bias": draw(size=40)}
    tensors |= {f"blk.{i}.ffn_up.bias": draw(size=256) for i in range(2)}
    tensors = {name: w for name, w in tensors.items() if not name.endswith("qkv.bias")}
    named = {name.replace("gpt2", "gpt"): value for name, value in gpt2_keys(24, 64, 2).items()}
    named |= {"general.architecture": "gpt", "gpt.attention.head_count": n_head, "gpt.activation": "relu"}
    return write_gguf(tmp_path / "gpt.gguf", tensors, named | {"pygpt.source": "lecture gpt.py"} | extra), tensors


# ---- the forward pass is what the engine computes --------------------------------------------------------------------


class Heads(np.ndarray):
    """(heads, positions, values): .T is what papers mean by it."""

    @property
    def T(self):
        return self.swapaxes(-1, -2)


class Tokens(np.ndarray):
    """(positions, values): x[:n] is a part of each token's x."""

    def __getitem__(self, key):
        return super().__getitem__((..., key) if isinstance(key, slice) else key)


def erf(x):
    from math import erf

    return np.vectorize(erf)(x)


class Program:
    """The left column of the explanation, and what stands behind "where", as a program on numpy arrays."""

    def __init__(self, text, tensors, info):
        header, *rows = section(text, "the forward pass")
        column = header.index("its tensors")
        self.lines = [row[:column].rstrip() for row in rows if row[:column].strip()]
        self.beside = {}  # line: the tensors that stand beside it
        for row in rows:
            line = row[:column].rstrip() or line  # noqa: F821
            cells = re.match(r"(?!rope_freqs)(\w+)  .*\[", row[column:])  # which rope reads
            self.beside.setdefault(line, []).extend([cells[1]] if cells else ["output"] * ("again" in row))
        definitions = "\n".join(section(text, "where"))[7:].replace("\n" + " " * 11, " ")
        self.definitions = dict(re.findall(r"^ *([\w, ]+?)(?:\([xi]\) =|:) (.+)$", definitions, re.MULTILINE))
        self.tensors, self.info = tensors, info

    def run(self, ids, windows):
        i, T = self.info, len(ids)
        names = {"id": np.array(ids), "position": np.arange(T), "sqrt": np.sqrt, "tanh": np.tanh}
        names |= {"before": lambda x: np.concatenate([0 * x[:, :][0][None], np.asarray(x)[:-1]])}
        names |= {name: self.function(name) for name in self.definitions if "," not in name and name != "slow"}
        loop = next((n for n, line in enumerate(self.lines) if line.startswith("for ")), len(self.lines))
        body = [line for line in self.lines[loop:] if line.startswith("    ")]
        for line in self.lines[:loop]:
            self.execute(line, "", names)
        for layer in range(i.n_layer):
            names |= {"i": layer, "softmax": softmax_of(windows[layer])}
            for line in body:
                self.execute(line, f"blk.{layer}.", names)
        for line in self.lines[loop + 1 + len(body) :]:
            self.execute(line, "", names)
        return names["logits"]

    def execute(self, shown, prefix, names):
        """One line, in which each name that is not known yet is one of the tensors beside it, in their order."""
        stems = [stem for stem in self.beside[shown] if self.name_of(stem, prefix)]
        if self.beside[shown] and not stems:  # this layer has none
            return
        line = shown.strip().replace("query(y), key(y), value(y)", "qkv(y)")
        words = re.findall(r"[A-Za-z_][\w.]*(?:\[\d\])?", line)
        known = {*names, "k.T", "x", "y", "q", "k", "v", "g", "x0", "x1", "if", "logits"}
        words = [word for word in dict.fromkeys(words) if word not in known]
        local = {}
        for word, stem in zip(words, stems, strict=True):
            alias = "tensor_" + re.sub(r"\W", "_", word)
            line = re.sub(rf"(?<![\w.]){re.escape(word)}(?![\w.])", alias, line)
            local[alias] = self.part(stem, self.name_of(stem, prefix))
        scope = names | local
        exec(line, scope)
        names.update({name: value for name, value in scope.items() if name not in local})

    def name_of(self, stem, prefix):
        stem = stem if stem != "output" or "output.weight" in self.tensors else "token_embd"
        return next((name for name in (prefix + stem, stem) if f"{name}.weight" in self.tensors), None)

    def part(self, stem, name):
        """An embedding is indexed, a norm or a projection is called, a number is a number."""
        weight, bias = self.tensors[name + ".weight"], self.tensors.get(name + ".bias")
        if stem.endswith("_norm"):
            definition = next(d for d in self.definitions.values() if "weight" in d)
            return lambda x: norm(definition, x, weight, 0 if bias is None else bias)
        if stem == "attn_value_embd":
            return Table(split(weight, self.info.n_head_kv, self.info.n_head).swapaxes(0, 1))
        if stem.endswith("_embd"):
            return Table(weight.view(Tokens))
        if stem.endswith("lambdas"):
            return weight
        if stem.endswith("lambda"):
            return float(weight[0])
        return lambda x: self.project(stem, x, np.atleast_2d(weight), 0 if bias is None else bias)

    def project(self, stem, x, weight, bias):
        i = self.info
        if isinstance(x, Heads):  # side by side
            x = np.asarray(x).swapaxes(0, 1).reshape(x.shape[1], -1)
        y = np.asarray(x) @ weight.T + bias
        if stem == "attn_qkv":
            return [split(part, i.n_head, i.n_head) for part in np.split(y, 3, axis=1)]
        if stem in ("attn_q", "attn_k", "attn_v", "attn_value_gate"):
            return split(y, i.n_head if stem == "attn_q" else i.n_head_kv, i.n_head)
        return y.view(Tokens)

    def function(self, name):
        known = {"erf": erf, "sqrt": np.sqrt, "tanh": np.tanh, "exp": np.exp, "pi": np.pi, "max": np.maximum}
        if "mean(x" in self.definitions[name]:  # a norm without weights
            return lambda x: norm(self.definitions[name], x, None, None)
        if name == "rope":
            return turning(self.definitions, self.tensors)
        return lambda x: eval(self.definitions[name], known, {"x": x})


class Table:
    """An embedding, which serves as the head too: (ids, values), or (ids, heads, values)."""

    def __init__(self, weight):
        self.weight = weight

    def __getitem__(self, ids):
        rows = self.weight[ids]
        return rows.swapaxes(0, 1) if rows.ndim == 3 else rows

    def __call__(self, x):
        return x @ self.weight.T


def split(y, n, n_head):
    """(positions, n * values) -> (n_head, positions, values); heads of keys serve several of queries."""
    heads = y.reshape(len(y), n, -1).swapaxes(0, 1)
    return np.repeat(heads, n_head // n, axis=0).view(Heads)


def softmax_of(window):
    def softmax(scores):
        n = scores.shape[-1]
        back = np.arange(n)[:, None] - np.arange(n)
        seen = np.where((back >= 0) & (back < (window or n)), scores, -np.inf)
        e = np.exp(seen - seen.max(axis=-1, keepdims=True))
        return (e / e.sum(axis=-1, keepdims=True)).view(Heads)

    return softmax


def norm(definition, x, weight, bias):
    known = {"x": x, "weight": weight, "bias": bias, "sqrt": np.sqrt}
    if "variance" in definition:
        known |= {"mean": x.mean(-1, keepdims=True), "variance": x.var(-1, keepdims=True)}
    else:
        known |= {"mean": lambda values: values.mean(-1, keepdims=True)}  # of a head, or of a token
    return eval(definition, known)


def turning(definitions, tensors):
    """rope as its definition has it."""
    pattern = r"the pairs \(x\[(.+)\], x\[(.+)\]\) of (a head|.+) turned by (.+?)(?: and multiplied by ([\d.]+))?"
    *pair, whose, angle, factor = re.fullmatch(pattern, definitions["rope"]).groups()

    def rope(x):
        n = x.shape[-1] if whose == "a head" else int(re.fullmatch(r"the first (\d+) values of a head", whose)[1])
        known = {
            "i": np.arange(n // 2),
            "position": np.arange(x.shape[1])[:, None],
            "min": np.minimum,
            "max": np.maximum,
        }
        known |= {"rope_freqs": tensors.get("rope_freqs.weight"), "slow": lambda i: eval(definitions["slow"], known)}
        first, second, turn = (eval(text.replace("2i", "2*i"), known) for text in (*pair, angle))
        y, cos, sin = x.copy(), np.cos(turn) * float(factor or 1), np.sin(turn) * float(factor or 1)
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        return y

    return rope


def assert_program_gives_logits(path, tensors):
    ids = np.random.default_rng(7).integers(0, 40, 16).tolist()
    with IdModel(path) as model:
        program = Program(text_of(model), tensors, model.info)
        ours, seen = model.logits(ids), windows(Anatomy(model))
    assert np.abs(ours - program.run(ids, seen)).max() < 1e-3 * ours.std(), program.lines
    return program


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", None])
@pytest.mark.parametrize("has_head", [True, False], ids=["a head", "tied"])
def test_the_lines_of_gpt2_are_a_program_that_gives_its_logits(tmp_path, activation, has_head):
    draw = np.random.default_rng(4)
    tensors = gpt2_tensors(40, 24, 64, 3, draw)
    tensors |= {f"blk.{i}.ffn_norm.bias": draw.normal(size=64) for i in range(3)} | {
        "output_norm.bias": draw.normal(size=64)
    }
    tensors |= {"output.weight": draw.normal(size=(40, 64))} if has_head else {}
    path = gpt2(tmp_path, "f32", tensors, **({"pygpt.activation": activation} if activation else {}))
    program = assert_program_gives_logits(path, tensors)
    assert program.lines == [
        "x = wte[id]",
        "x = x + wpe[position]",
        "for block in h:",
        "    y = ln_1(x)",
        "    q, k, v = attn.c_attn(y)",
        "    y = softmax(q @ k.T / sqrt(32)) @ v",
        "    x = x + attn.c_proj(y)",
        "    y = ln_2(x)",
        f"    y = {activation or 'gelu_tanh'}(mlp.c_fc(y))",
        "    x = x + mlp.c_proj(y)",
        "y = ln_f(x)",
        "logits = lm_head(y)",
    ]


@pytest.mark.parametrize("source", ["llama2.c", "Hugging Face"])
@pytest.mark.parametrize("config", [Config(n_vocab=40, window=5),
                                    Config("qwen3", 40, head_norms=True, biases=True, theta=500.0)],
                         ids=["llama", "qwen3"])  # fmt: skip
def test_the_lines_of_llama_are_a_program_that_gives_its_logits(tmp_path, config, source):
    tensors = random_tensors(config)
    path = write_gguf(tmp_path / "l.gguf", tensors, keys(config) | {"pygpt.source": source}, "f32")
    program = assert_program_gives_logits(path, tensors)
    pairs = "(x[2i], x[2i+1])" if config.architecture == "llama" else "(x[i], x[i+8])"
    assert program.definitions["rope"] == (
        f"the pairs {pairs} of a head turned by position / {config.theta:.0f}**(2i/{config.dim})"
    )
    meta = config.architecture == "llama" and source == "llama2.c"
    assert ("    y = silu(w1(y)) * w3(y)" if meta else "    y = silu(gate_proj(y)) * up_proj(y)") in program.lines


PAIRS = "the pairs (x[2i], x[2i+1]) of a head turned by position / 10000**(2i/16)"
STRETCHED = [
    (Config(rope_factors=True), {}, PAIRS + " / rope_freqs[i]"),
    (Config(scaling="linear"), {}, PAIRS + " / 4"),
    (Config(), {"rope.scaling.factor": 3.0}, PAIRS + " / 3"),
    (Config(), {"rope.scale_linear": 3.0}, PAIRS + " / 3"),
    (Config(scaling="linear"), {"rope.scaling.type": "none"}, PAIRS),
    (Config(rope_factors=True), {"rope.scaling.factor": 2.0}, PAIRS + " / 2 / rope_freqs[i]"),
    (Config(scaling="yarn"), {}, PAIRS + " * (1 - slow(i) + slow(i) / 4) and multiplied by 1.138629"),
    (
        Config("qwen2", scaling="yarn", theta=500.0, factor=8.0, head_dim=64),
        {"rope.scaling.yarn_beta_fast": 3.0, "rope.scaling.yarn_beta_slow": 0.5, "rope.scaling.yarn_attn_factor": 0.9},
        "the pairs (x[i], x[i+32]) of a head turned by position / 500**(2i/64) * (1 - slow(i) + slow(i) / 8) "
        "and multiplied by 1.08715",
    ),
    (
        Config("qwen3", head_norms=True, n_rot=8),
        {},
        "the pairs (x[i], x[i+4]) of the first 8 values of a head turned by position / 10000**(2i/8)",
    ),
]


@pytest.mark.parametrize(("config", "more", "said"), STRETCHED, ids=range(len(STRETCHED)))
def test_rope_is_told_as_it_is_stretched(tmp_path, config, more, said):
    config = replace(config, n_vocab=40)
    tensors = random_tensors(config)
    named = keys(config) | {f"{config.architecture}.{name}": value for name, value in more.items()}
    program = assert_program_gives_logits(write_gguf(tmp_path / "l.gguf", tensors, named, "f32"), tensors)
    assert program.definitions["rope"] == said


def test_the_divisors_of_rope_are_no_parameters(tmp_path):
    config = Config(rope_factors=True)
    tensors = random_tensors(config)
    with IdModel(write_gguf(tmp_path / "l.gguf", tensors, keys(config))) as model:
        text = text_of(model)
    n_params = sum(w.size for name, w in tensors.items() if name != "rope_freqs.weight")
    assert text.startswith(f"llama: {n_params:,} parameters, ") and "in other" not in text.split("\n\n")[0]
    assert re.search(r"^    q, k = rope\(q\), rope\(k\) +rope_freqs +\[8\] +0  f32$", text, re.MULTILINE)
    assert re.search(r"^rope divisors +8, one for each pair +the tensor rope_freqs in the file$", text, re.MULTILINE)
    assert "rope scaling" not in text
    rows = {tuple(row.split()[:2]): numbers(row)[-1] for row in section(text, "where the bytes are")[1:]}
    assert rows["other", "f32"] == 4 * 8


@pytest.mark.parametrize(
    ("scale", "line"),
    [
        (None, "y = softmax(q @ k.T / sqrt(16)) @ v"),
        (64**-0.5, "y = softmax(q @ k.T / sqrt(64)) @ v"),
        (1.0, "y = softmax(q @ k.T) @ v"),
        (0.3, "y = softmax(q @ k.T * 0.3) @ v"),
    ],
)
def test_the_lectures_gpt_is_told_in_its_words(tmp_path, scale, line):
    path, tensors = lecture(tmp_path, 4, **({"gpt.attention.scale": scale} if scale else {}))
    program = assert_program_gives_logits(path, tensors)
    with IdModel(path) as model:
        text = text_of(model)
    lines = [line.strip() for line in program.lines]
    assert lines == [
        "x = token_embedding_table[id]",
        "x = x + position_embedding_table[position]",
        "for block in blocks:",
        "y = ln1(x)",
        "q, k, v = query(y), key(y), value(y)",
        line,
        "x = x + sa.proj(y)",
        "y = ln2(x)",
        "y = relu(ffwd.net[0](y))",
        "x = x + ffwd.net[2](y)",
        "y = ln_f(x)",
        "logits = lm_head(y)",
    ]
    assert "relu(x) = max(x, 0)" in text
    where = "gpt.attention.scale in the file" if scale else "by default of the architecture: 1 / sqrt(16)"
    assert re.search(rf"^attention scale +{0.25 if not scale else f'{scale:.7g}'} +{re.escape(where)}$", text, re.M)


def test_nanochats_optional_parts_are_told_with_their_layers(tmp_path):
    path, tensors = nanochat(tmp_path)
    program = assert_program_gives_logits(path, tensors)
    assert program.definitions["rope"] == ("the pairs (x[i], x[i+8]) of a head turned by -position / 100000**(2i/16)")
    with IdModel(path) as model:
        text = text_of(model)
    for line in (
        "g = smear_lambda * sigmoid(smear_gate(x[:24]))",
        "    x = resid_lambdas[i] * x + x0_lambdas[i] * x0",
        "    g = 3 * sigmoid(ve_gate(y[:12]))",
        "    v = v + g * value_embeds[id]",
        "    q = 1.2 * norm(rope(q))",
        "    if i == 2: x1 = x",
        "x = x - backout_lambda * x1",
        "logits = 15 * tanh(logits / 15)",
    ):
        assert f"\n{line}" in text
    assert text.count("in layers 1, 3") == 2  # the value embedding and its gate
    assert "4 heads of 16; k and v have 2, each for 2 of them" in text
    assert "in 2 of 4 layers it sees itself and 4 before\n" in text and "in the others itself and all before" in text
    assert "relu(x) = max(x, 0)" in text and "norm: x / sqrt(mean(x**2) + 1e-06)\n" in text
    # matrices that a token passes: not the embeddings of values, of which it takes a row
    assert numbers(section(text, "what a token costs")[1])[-1] == 4 * (64 * 64 * 2 + 32 * 64 * 2) + 2 * 2 * 12
    seen = 5 + 5 + 24 + 24
    assert numbers(section(text, "what a token costs")[4])[-2:] == [2 * 4 * 16 * 4, 2 * 4 * 16 * seen]


def test_a_bigram_is_a_table(tmp_path):
    named = {"general.architecture": "bigram", "bigram.context_length": 1024, "bigram.vocab_size": 65}
    path = write_gguf(tmp_path / "b.gguf", {"token_embd.weight": np.arange(65 * 65.0).reshape(65, 65)}, named)
    with IdModel(path) as model:
        text = text_of(model, True)
        assert (model.logits([7, 64])[1] == np.arange(65) + 64 * 65).all()
    assert text.startswith("bigram: 4,225 parameters, 4,225 (100.0%) in embeddings\n")
    assert "logits = token_embedding_table[id]  token_embd    [65, 65]       4,225  f32\n" in text
    assert "Neither binds: a token is a row that is looked up." in text and "k and v" not in text


# ---- its tensors and its bytes ---------------------------------------------------------------------------------------


def test_the_bundled_model_adds_up():
    with IdModel() as model:
        text, info, file = text_of(model), model.info, model.file()
    V, T, C, L = 65, 256, 256, 4
    parts = {"embeddings": V * C + T * C, "attention": L * 4 * C * C, "feed-forward": L * 8 * C * C}
    parts["norms and biases"] = info.n_params - sum(parts.values())
    head = " ".join(text.split("\n\n")[0].split())
    assert head == (
        f"gpt2, made from nanoGPT: {info.n_params:,} parameters, "
        + ", ".join(f"{n:,} ({n / info.n_params:.1%}) in {part}" for part, n in parts.items())
        + ", none in the head, which is the token embedding again"
    )
    cost = {line[:18].strip(): numbers(line) for line in section(text, "what a token costs")[1:]}
    assert cost["attention"] == [parts["attention"]] * 2 and cost["feed-forward"] == [parts["feed-forward"]] * 2
    assert cost["head"] == [V * C] * 2
    assert cost["q @ k.T, p @ v"][-2:] == [2 * L * 4 * 64, 2 * L * 4 * 64 * T]
    passed = parts["attention"] + parts["feed-forward"] + V * C
    flops = [2 * (passed + 2 * L * 4 * 64 * t) / 1e6 for t in (1, T)]
    assert re.search(rf"^FLOPs .* {flops[0]:.1f} M +{flops[1]:.1f} M$", text, re.MULTILINE)
    share = "read; by a prompt every 128 tokens, the head once"
    assert re.search(rf"^weights +{share} +{info.bytes_per_token / 1e6:.1f} MB", text, re.MULTILINE)
    assert f"4 layers x 4 heads x (64 + 64) f16 = {L * 4 * 128 * 2:,} x t" in text
    rows = section(text, "where the bytes are")[1:]
    amounts = [numbers(row)[-1] for row in rows]
    assert amounts[-1] == sum(amounts[:-1]) == file.bytes and amounts[:-2] == sorted(amounts[:-2], reverse=True)
    assert sum(float(row.split("%")[0].split()[-1]) for row in rows[:-1]) == pytest.approx(100, abs=0.3)
    assert f"blk.0 .. blk.3  4 x {(info.n_params - parts['embeddings'] - C) // L:,}" in text


@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_0"])
def test_parameters_of_all_rows_are_those_of_the_model(tmp_path, type):
    """Every tensor stands in one row, once per layer; biases of zeros are none of the model's."""
    tensors = gpt2_tensors(40, 24, 64, 3, np.random.default_rng(1))
    tensors |= {f"blk.{i}.attn_output.bias": np.zeros(64) for i in range(3)}
    tensors |= {f"blk.{i}.ffn_down.bias": np.ones(64) * (i == 1) for i in range(3)}
    with IdModel(gpt2(tmp_path, type, tensors)) as model:
        text, n_params, file = text_of(model), model.info.n_params, model.file()
    total, loop = 0, 0
    rows = section(text, "the forward pass")[1:]
    for n, row in enumerate(rows):
        found = re.search(r"\[([\d, ]+)\] +([\d,]+)  (\w+)$", row)
        if "blk.0" in row:
            loop = 3
        if found:
            size = int(found[2].replace(",", ""))
            assert size == np.prod([int(k) for k in found[1].split(",")])
            loop = 0 if "output_norm" in row else loop
            layers = 1 if n + 1 < len(rows) and "in layers 1" in rows[n + 1] else loop or 1
            total += size * layers
    assert total == n_params and "5 tensors of zeros are in the file for biases" in text
    assert sum(t.bytes for t in file.tensors.values()) == sum(
        numbers(row)[-1] for row in section(text, "where the bytes are")[1:-2]
    )


def test_layers_of_several_types_are_one_row(tmp_path):
    import gguf

    tensors = gpt2_tensors(40, 24, 64, 3, np.random.default_rng(1))
    writer = gguf.GGUFWriter(tmp_path / "mixed.gguf", "gpt2")
    for name, value in gpt2_keys(24, 64, 3).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        if isinstance(value, (int, float)):
            add(name, value)
    for name, array in tensors.items():
        kind = _lib.types()["f32" if array.ndim == 1 else "q8_0" if name == "blk.1.ffn_down.weight" else "q4_0"]
        rows = _lib.quantize(array.astype(np.float32), kind.name)
        writer.add_tensor(name, rows, raw_shape=rows.shape, raw_dtype=gguf.GGMLQuantizationType(kind.id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with IdModel(tmp_path / "mixed.gguf") as model:
        text = text_of(model)
    assert re.search(r"ffn_down +\[64, 256\] +16,384  q4_0/q8_0\n", text)
    assert re.search(r"ffn_up +\[256, 64\] +16,384  q4_0\n", text)
    kinds = {tuple(row.split()[:2]): numbers(row)[-1] for row in section(text, "where the bytes are")[1:]}
    assert kinds["feed-forward", "q8_0"] == 64 * 256 // 32 * 34
    assert kinds["feed-forward", "q4_0"] == 5 * 64 * 256 // 32 * 18


@pytest.mark.parametrize(
    ("config", "type"),
    [
        (Config(n_ctx=40), "f32"),
        (Config(n_embd=48, head_dim=24, n_ctx=37), "f32"),
        (Config(n_ctx=40, n_head_kv=1, window=7), "q8_0"),
        (Config("qwen2", n_ctx=33, n_head_kv=4), "f16"),
    ],
    ids=["floats", "padded heads", "a window", "halves that are no quantized weights"],
)
def test_the_cache_is_counted_as_it_lies_in_memory(tmp_path, config, type):
    path = write_gguf(tmp_path / "l.gguf", random_tensors(config), keys(config), type)
    with IdModel(path) as model:
        a, text = Anatomy(model), text_of(model)
    bytes, padded, d = 2 if type == "q8_0" else 4, -(-config.dim // 16) * 16, config.dim
    per_token = config.n_layer * config.n_head_kv * (d + padded) * bytes
    tiles = -(-config.n_ctx // 16) * 16
    assert (
        cache_bytes(a, config.n_ctx) == config.n_layer * config.n_head_kv * (tiles * d + config.n_ctx * padded) * bytes
    )
    kind = {2: "f16", 4: "f32"}[bytes]
    assert f"2 layers x {config.n_head_kv} heads x ({d} + {padded}) {kind} = {per_token:,} x t" in text
    seen = [min(t, config.window or t) for t in (1, config.n_ctx)]
    row = next(line for line in section(text, "what a token costs") if line.startswith("q @ k.T"))
    assert numbers(row)[-2:] == [2 * config.n_layer * config.n_head * d * n for n in seen]


def test_a_new_architecture_still_explains_its_tensors(tmp_path, monkeypatch):
    for name in ("FORMULAS", "NORMS", "WORDS", "CONSTANTS"):
        monkeypatch.setattr(formulas, name, {})
    with IdModel(gpt2(tmp_path)) as model:
        text, tensors = text_of(model, True), model.file().tensors
    stems = {re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight") for name in tensors}
    rows = section(text, "  ")[1:] if text.split("\n\n")[1].startswith("  ") else section(text, "its tensors")[1:]
    assert {row.split()[1] if row.split()[0] == row.split()[1] else row.split()[0] for row in rows} == stems
    assert "gpt2.attention.head_count in the file" in text and "what a token costs" in text and "machine" in text


# ---- large models: their shapes without their gigabytes --------------------------------------------------------------

LLAMA_8B = dict(n_vocab=128256, n_ctx=131072, n_layer=32, n_head=32, n_head_kv=8, n_embd=4096, n_ff=14336)
NANOCHAT_D32 = dict(n_vocab=65536, n_ctx=2048, n_layer=32, n_head=16, n_head_kv=16, n_embd=2048, n_ff=8192)
WINDOWS = {"nanochat.attention.sliding_window": [512, 512, 512, 2048] * 8}
EPSILON = {"nanochat.attention.layer_norm_rms_epsilon": 1e-6}


def large(architecture, sizes, types, named):
    """What explain asks a model for. types: of the matrices, layer after layer."""
    n = SimpleNamespace(**sizes)
    kv, is_llama = n.n_embd // n.n_head * n.n_head_kv, architecture != "nanochat"
    inner = {"attn_q": (n.n_embd, n.n_embd), "attn_k": (kv, n.n_embd), "attn_v": (kv, n.n_embd)}
    inner |= {"attn_output": (n.n_embd, n.n_embd), "ffn_up": (n.n_ff, n.n_embd), "ffn_down": (n.n_embd, n.n_ff)}
    inner |= {"ffn_gate": (n.n_ff, n.n_embd)} if is_llama else {"attn_value_embd": (n.n_vocab, kv)}
    outer = {"token_embd": (n.n_vocab, n.n_embd), "output": (n.n_vocab, n.n_embd)}
    if is_llama:
        inner, outer = inner | {"attn_norm": (n.n_embd,)}, outer | {"output_norm": (n.n_embd,)}
    else:
        outer |= {"resid_lambdas": (n.n_layer,), "x0_lambdas": (n.n_layer,), "smear_gate": (24,), "smear_lambda": (1,)}
    rows = [(f"{name}.weight", shape, types[0]) for name, shape in outer.items()]
    for i in range(n.n_layer):
        rows += [(f"blk.{i}.{name}.weight", shape, types[i % len(types)]) for name, shape in inner.items()]
    kinds = {type: _lib.types()[type] for type in {*types, "f32"}}
    tensors = {}
    for name, shape, type in rows:
        kind = kinds[type if len(shape) == 2 else "f32"]
        tensors[name] = _lib.TensorInfo(name, kind.name, shape, int(np.prod(shape)) // kind.block * kind.bytes)
    bytes = sum(tensor.bytes for tensor in tensors.values())
    file = SimpleNamespace(keys={"pygpt.source": "Hugging Face"} | named, bytes=bytes, tensors=tensors)
    n_params = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    info = _lib.ModelInfo(architecture, n_threads=256, n_params=n_params, bytes_per_token=bytes, **sizes)
    return SimpleNamespace(info=info, file=lambda: file)


def test_two_types_in_a_row_and_a_long_context_fit_the_page():
    model = large("llama", LLAMA_8B, ["q4_0", "bf16"], {})
    text = text_of(model)
    assert re.search(r"^    x = x \+ down_proj\(y\) +ffn_down +\[4096, 14336\] +58,720,256  bf16/q4_0$", text, re.M)
    rows = section(text, "what a token costs")
    assert rows[-2].split() == "k and v kept 32 layers x 8 heads x (128 + 128) f16 = 131,072 x t".split()
    assert rows[-1].split() == ["131.1", "kB", "17.2", "GB"]
    assert len({len(row) for row in [rows[0], *rows[1:-2], rows[-1]]}) == 1  # numbers end in the same columns
    said = limits(Anatomy(model), Machine(read=9.999e11, mac=9.999e14, cache=None, isa="avx512vnni"))
    assert "999.9 GB/s to 256 threads" in said[0] and all(len(line) <= 100 for line in said)


@pytest.mark.parametrize("types", [["q8_0"], ["bf16", "q4_0", "q8_0"], ["iq4_nl", "iq4_xs", "mxfp4"]], ids="/".join)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "nanochat"])
def test_code_that_leaves_no_room_stands_above_its_tensors(architecture, types):
    sizes = NANOCHAT_D32 if architecture == "nanochat" else LLAMA_8B
    lines = text_of(large(architecture, sizes, types, {})).splitlines()
    code, stem = "    y = silu(gate_proj(y)) * up_proj(y)", "ffn_gate"
    if architecture == "nanochat":
        code, stem = "    x = resid_lambdas[i] * x + x0_lambdas[i] * x0", "resid_lambdas"
    n = next(n for n, line in enumerate(lines) if line.startswith(code))
    is_alone = lines[n] == code
    assert is_alone == (architecture == "nanochat" or len(types) > 1)
    column = lines[n + is_alone].index(stem)
    assert not lines[n + 1][:column].strip() and lines[n + 1 + is_alone][column:].split()[0] in ("ffn_up", "x0_lambdas")
    down = next(line for line in lines if line[column:].startswith("ffn_down"))
    assert down.split()[-1] == "/".join(types)


def test_a_row_of_very_many_types_says_how_many():
    text = text_of(large("llama", LLAMA_8B, ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"], {}))
    assert re.search(r" ffn_down .*  6 types$", text, re.M)
    assert len([row for row in section(text, "where the bytes are") if row.startswith("feed-forward")]) == 6


def test_a_constant_with_many_values_stands_above_its_origin():
    text = text_of(large("nanochat", NANOCHAT_D32, ["q8_0"], WINDOWS | EPSILON))
    rows = section(text, "its constants")
    n = next(n for n, row in enumerate(rows) if row.startswith("window (0: all)"))
    assert rows[n] == "window (0: all)    512 x 3, 2048, 512 x 3, 2048, 512 x 3..."
    assert rows[n + 1].strip() == "nanochat.attention.sliding_window in the file"
    assert rows[n + 2].split() == "norm epsilon 1e-06 nanochat.attention.layer_norm_rms_epsilon in the file".split()
    assert rows[n + 1].index("nanochat") == rows[n + 2].index("nanochat")
    assert " in 24 of 32 layers it sees itself and 511 before\n" in text


# ---- constants -------------------------------------------------------------------------------------------------------


def test_constants_say_where_they_come_from(tmp_path):
    said = ["GELU is exact (erf), as in nanoGPT since 2023-06-14.", "The scale is " + "very " * 40 + "much assumed."]
    path = gpt2(tmp_path, **{"pygpt.activation": "gelu_erf", "pygpt.assumptions": said, "gpt2.odd.key": 7})
    with IdModel(path) as model:
        text = text_of(model)
    rows = {line[:17].strip() or line.split()[0]: line.split(None, 1)[1] for line in section(text, "its constants")[1:]}
    assert rows["activation"].split() == "gelu_erf pygpt.activation in the file".split()
    assert rows["norm epsilon"].split()[1:] == "1e-05 gpt2.attention.layer_norm_epsilon in the file".split()
    assert "0.1767767  by default of the architecture: 1 / sqrt(32)" in rows["attention scale"]
    assert rows["ids"].split()[0] == "40" and "the rows of token_embd in the file" in rows["ids"]
    assert rows["7"] == "gpt2.odd.key in the file"
    assumed = " ".join(section(text, "what the checkpoint did not say")[1:])
    assert re.sub(r"\s+", " ", assumed) == f"- {said[0]} - {said[1]}"
    with IdModel(gpt2(tmp_path)) as model:
        plain = text_of(model)
    assert re.search(r"^activation +gelu_tanh +by default of the architecture: as in GPT-2$", plain, re.MULTILINE)
    assert "what the checkpoint did not say" not in plain


def test_llamas_defaults_and_its_keys_are_told_apart(tmp_path):
    config = Config("qwen2", n_ctx=40, scaling="yarn", window=9, biases=True)
    named = {k: v for k, v in keys(config).items() if not k.endswith("freq_base")}
    with IdModel(write_gguf(tmp_path / "l.gguf", random_tensors(config), named)) as model:
        text = text_of(model)
    assert "rope divisors" not in text
    for row in (
        r"rope base +10000 +by default of the architecture",
        r"window \(0: all\) +9 +qwen2.attention.sliding_window in the file",
        r"heads of k and v +2 +qwen2.attention.head_count_kv in the file",
        r"width of a head +16 +by default of the architecture: width / heads",
        r"rope scaling +yarn +qwen2.rope.scaling.type in the file",
        r"rope factor +4 +qwen2.rope.scaling.factor in the file",
        r"yarn: context +16 +qwen2.rope.scaling.original_context_length in the file",
        r"yarn: beta_fast +32 +by default of the architecture: as in YaRN's paper",
        r"activation +silu +by default of the architecture",
    ):
        assert re.search(f"^{row}$", text, re.MULTILINE), row
    assert "a token sees itself and 8 before\n" in text


def test_what_a_file_says_cannot_reach_the_terminal(tmp_path):
    evil = "\x1b]0;x\x07\u202e\r\n"
    extra = {"pygpt.source": evil * 50, "pygpt.assumptions": [evil * 9] * 99, "gpt2.\x1b[2J": evil * 9}
    extra |= {f"gpt2.many.{i}": i for i in range(99)} | {"gpt2.list": [evil] * 99, "gpt2.attention.key_length": "none"}
    with IdModel(gpt2(tmp_path, **extra)) as model:
        text = text_of(model)  # which looks for what is not printable
    assert r"gpt2, made from \x1b]0;x\x07\u202e\r\n" in text and r"gpt2.\x1b[2J in the file" in text
    assert "keys more in the file" in text and len(text.splitlines()) < 300
    with IdModel(gpt2(tmp_path, **{"pygpt.source": 3, "pygpt.assumptions": "text", "pygpt.odd": [1]})) as model:
        assert text_of(model).startswith("gpt2: ")


# ---- limits ----------------------------------------------------------------------------------------------------------


def limited(tmp_path, type="q8_0", **machine):
    with IdModel(gpt2(tmp_path, type), threads=2) as model:
        a = Anatomy(model)
        return a, limits(a, Machine(**{"read": 1e9, "mac": 1e12, "cache": 1 << 10, "isa": "avx2"} | machine))


def test_limits_follow_from_what_the_machine_gives(tmp_path):
    a, lines = limited(tmp_path)
    weights = a.info.bytes_per_token
    body, head = 3 * 12 * 64 * 64, 40 * 64
    assert weights == (body + head) // 32 * 34  # q8_0, tied
    cache = 3 * 2 * (32 * 32 + 24 * 32) * 2  # tiles of 16 keys, 24 values, f16
    assert lines[:3] == [
        "machine  memory gives 1.0 GB/s to 2 threads, avx2 makes 1.0 T products of int8/s",
        f"decode   memory / weights: {1e9 / weights:,.0f} tokens/s at most, "
        f"{1e9 / (weights + cache):,.0f} with all keys and values",
        f"prefill  products of int8, attention left out: {1e12 / body:,.0f} tokens/s at most",
    ]
    for mac, prompt in (
        (1e11, "multiplying binds a prompt, whose tokens share what is read"),
        (1e12, "it binds a prompt too, though 128 tokens share what is read"),
    ):
        ratio = (weights / 1e9) / ((body + head) / mac)
        assert " ".join(limited(tmp_path, mac=mac)[1][3:]) == (
            f"Memory binds decoding: reading the weights takes {ratio:.1f} times as long as multiplying with them; "
            f"{prompt}."
        )


def test_the_sentence_names_what_binds(tmp_path):
    said = " ".join(limited(tmp_path, cache=1 << 25)[1][3:])
    assert said.startswith("Memory does not bind, and its limit does not hold: the 159.4 kB of a token fit into the")
    assert said.endswith(
        "(33.6 MB) and are read from there; multiplying with them, attention left out, would allow "
        f"{1e12 / 150016:,.0f} tokens/s."
    )
    said = " ".join(limited(tmp_path, cache=160_000)[1][3:])
    assert "(160.0 kB) and are read from there, until keys and values make them 180.9 kB; multiplying with" in said
    said = " ".join(limited(tmp_path, cache=None)[1][3:])
    assert said.startswith("Memory binds decoding, unless the 159.4 kB fit into a cache, whose size is not known here:")
    said = " ".join(limited(tmp_path, read=1e13)[1][3:])
    assert said.startswith("Multiplying binds, decoding too: it takes 9.4 times as long as reading the weights.")


def test_of_floats_only_the_limit_of_memory_is_known(tmp_path):
    end = "all products are of floats, whose speed is not measured."
    said = " ".join(limited(tmp_path, "f32")[1][2:])
    assert said == "Memory's limit holds; whether multiplying binds before it is not known: " + end
    said = " ".join(limited(tmp_path, "f16", cache=None)[1][2:])
    assert said.startswith("Memory's limit holds, unless the 300.0 kB fit into a cache, whose size is not known here;")
    said = " ".join(limited(tmp_path, "f16", cache=1 << 25)[1][2:])
    assert said.startswith("Memory does not bind") and said.endswith("and are read from there; " + end)


def limits_of(sizes, types, **machine):
    a = Anatomy(large("llama", sizes, types, {}))
    return a, limits(a, Machine(**{"read": 1e11, "mac": 1e14, "cache": 1 << 20, "isa": "avx2"} | machine))


def test_where_many_products_are_of_floats_no_conclusion_is_drawn_from_those_of_int8():
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336
    head, int8, floats = 128256 * 4096, 16 * layer, 16 * layer  # every other layer
    share = f"{floats / (head + int8 + floats):.1%}"
    a, lines = limits_of(LLAMA_8B, ["q8_0", "f16"])
    assert lines[2] == (
        f"prefill  products of int8, which are 50.0% of all, attention left out: {1e14 / int8:,.0f} tokens/s at most"
    )
    end = f"{share} of a token's products are of floats, whose speed is not measured."
    assert " ".join(lines[3:]) == "Memory's limit holds; whether multiplying binds before it is not known: " + end
    assert " ".join(limits_of(LLAMA_8B, ["q8_0", "f16"], cache=1 << 40)[1][3:]).endswith("are read from there; " + end)
    times = (head + int8) / 1e9 / (a.info.bytes_per_token / 1e11)  # without the floats it would not be less
    assert " ".join(limits_of(LLAMA_8B, ["q8_0", "f16"], mac=1e9)[1][3:]) == (
        f"Multiplying binds, decoding too: it takes at least {times:.1f} times as long as reading the weights."
    )


def test_few_products_of_floats_change_nothing():
    lines = limits_of(LLAMA_8B, ["q8_0"] * 31 + ["f16"], mac=1e12)[1]
    assert "prefill  products of int8, attention left out:" in lines[2]
    assert lines[3].startswith("Memory binds decoding:") and "floats" not in " ".join(lines)
    head_alone = LLAMA_8B | dict(n_embd=256, n_head_kv=32, n_ff=256, n_layer=10)
    lines = limits_of(head_alone, ["q8_0"] * 9 + ["f16"])[1]
    assert "which are 90.0% of all" in lines[2]
    assert " ".join(lines[3:]).endswith("; 10.0% of a prompt's products are of floats, whose speed is not measured.")


def test_of_keys_and_values_only_those_in_the_windows_are_read(tmp_path):
    machine = Machine(read=1e13, mac=1e12, cache=1 << 10, isa="avx2")
    a = Anatomy(large("nanochat", NANOCHAT_D32, ["q8_0"], WINDOWS | EPSILON))
    seen = (24 * 512 + 8 * 2048) * 16 * (128 + 128) * 2
    full = f"{1e13 / (a.info.bytes_per_token + seen):,.0f}"
    assert limits(a, machine)[1].endswith(f" tokens/s at most, {full} with all keys and values seen")
    path, _ = nanochat(tmp_path)
    with IdModel(path) as model:
        a = Anatomy(model)
        seen = 2 * (2 * (16 + 5) + 2 * (32 + 24)) * 16 * 4  # windows of 5, 5, 0 and 24: keys in tiles, f32
        full = f"{1e13 / (a.info.bytes_per_token + seen):,.0f}"
        assert limits(a, machine)[1].endswith(f" tokens/s at most, {full} with all keys and values seen")


def test_the_machine_is_measured_only_when_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(_lib, "measure_read", lambda threads: asked.append(threads) or 2e9)
    monkeypatch.setattr(_lib, "measure_mac", lambda threads: asked.append(threads) or 3e9)
    with IdModel(threads=1) as model:
        assert "machine" not in text_of(model) and asked == []
        text = text_of(model, True)
        bytes = model.info.bytes_per_token
    assert asked == [1, 1] and "memory gives 2.0 GB/s to 1 thread, " in text and "makes 3.0 G products" in text
    assert f"memory / weights: {2e9 / bytes:,.0f} tokens/s at most" in text


def test_the_real_machine_can_be_measured():
    with IdModel(BUNDLED) as model:
        lines = section(text_of(model, True), "what limits its speed here")
    assert [line.split()[0] for line in lines[1:4]] == ["machine", "decode", "prefill"]
    assert all(n > 0 for line in lines[2:4] for n in numbers(line))


def test_the_last_caches_of_all_processors_are_added_once(tmp_path, monkeypatch):
    def cache(cpu, index, level, size, shared):
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in {"level": level, "size": size, "shared_cpu_list": shared}.items():
            (folder / name).write_text(f"{value}\n")

    monkeypatch.setattr(explain, "os", SimpleNamespace(**{n: getattr(explain.os, n) for n in ("path", "listdir")},
                                                       sched_getaffinity=lambda _: {0, 1, 2}))  # fmt: skip
    for cpu in range(4):
        cache(cpu, 0, 1, "32K", str(cpu))
        cache(cpu, 3, 3, "32M" if cpu < 2 else "16384K", "0-1" if cpu < 2 else "2-3")
    assert cache_of_cpus(str(tmp_path)) == (32 << 20) + (16 << 20)
    (tmp_path / "cpu2" / "cache" / "index3" / "size").write_text("big\n")
    assert cache_of_cpus(str(tmp_path)) is None and cache_of_cpus(str(tmp_path / "absent")) is None
