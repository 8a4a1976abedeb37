"""--check runs the user's own module and holds its logits against the engine's: what agrees, what does not, and what
his code may do wrong."""

import dataclasses
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch runs the modules that are compared here: pip install torch")

from conftest import character_keys, write_gguf  # noqa: E402
from pygpt.convert.check import check  # noqa: E402
from pygpt.convert.checkpoint import Input  # noqa: E402
from reference.gpt import Config, checkpoint, random_gpt  # noqa: E402

import pygpt  # noqa: E402

CONFIG = Config(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=40)
IDS = np.random.default_rng(5).integers(0, 40, 12).tolist()
HERE = Path(__file__).parent
NAMES = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
         "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "wte": "token_embd", "wpe": "position_embd",
         "ln_f": "output_norm"}  # fmt: skip

# A user's file in nanoGPT's manner: a config, a module of it, and logits of the last position unless there are targets.
NANOGPT = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from dataclasses import dataclass
import torch
from torch.nn import functional as F
from reference.gpt import Config, GPT as Twin

print("made by hand")

class Block(torch.nn.Module):  # settings could fill it, and it is no config
    def __init__(self, n_embd, n_head):
        super().__init__()

@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True

class GPT(Twin):
    def __init__(self, config):
        assert config.vocab_size is not None
        super().__init__(Config(config.n_layer, config.n_head, config.n_embd, config.block_size, config.vocab_size,
                                config.bias, gelu="gelu_erf"))

    def forward(self, idx, targets=None):
        print("running")
        if targets is None:
            return super().forward(idx, last=True), None
        logits = super().forward(idx)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
"""


@pytest.fixture(scope="module")
def twin():
    return random_gpt(CONFIG)


@pytest.fixture
def compared(tmp_path, twin):
    """compared(source, "GPT"): the result, or the sentence of an error, of a user's file with that source.

    change: a function that changes the checkpoint before it is saved. settings: beside those of model_args.
    """

    def run(source, name, change=None, settings=None, ids=IDS):
        path = tmp_path / "mine.py"
        path.write_text(source, encoding="utf-8")
        value = checkpoint(twin)
        if change:
            change(value["model"])
        torch.save(value, tmp_path / "ckpt.pt")
        before = (
            sorted(os.listdir(tmp_path)),
            set(sys.modules),
            list(sys.path),
            sys.argv,
            dict(os.environ),
            os.getcwd(),
        )
        with ExitStack() as stack:
            weights = Input(str(tmp_path / "ckpt.pt"), stack).weights
            said = {**value["model_args"], "device": "cuda", **(settings or {})}
            try:
                return check(f"{path}:{name}", weights, said, model_file(tmp_path.parent, twin), ids)
            except pygpt.Error as error:
                sentence = str(error)
                assert "\n" not in sentence and len(sentence) < 600 and "Traceback" not in sentence
                return sentence
            finally:
                after = (sorted(os.listdir(tmp_path)), {n for n in sys.modules if "mine" not in n}, list(sys.path),
                         sys.argv, dict(os.environ), os.getcwd())  # fmt: skip
                assert after[0] == before[0] and after[2:] == before[2:], "something was left behind"
                assert not any("pygpt_checked" in n for n in after[1])

    return run


def model_file(folder, model):
    tensors = {}
    for name, value in model.state_dict().items():
        layer, _, rest = name.removeprefix("transformer.").removeprefix("h.").partition(".")
        stem, kind = (rest if layer.isdigit() else name.removeprefix("transformer.")).rsplit(".", 1)
        if stem != "lm_head":
            tensors[f"blk.{layer}." * layer.isdigit() + f"{NAMES[stem]}.{kind}"] = value.numpy()
    keys = {
        "general.architecture": "gpt2",
        "gpt2.context_length": CONFIG.block_size,
        "gpt2.embedding_length": CONFIG.n_embd,
        "gpt2.feed_forward_length": 4 * CONFIG.n_embd,
        "gpt2.block_count": CONFIG.n_layer,
        "gpt2.attention.head_count": CONFIG.n_head,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
        "pygpt.activation": "gelu_erf",
        **character_keys([chr(48 + i) for i in range(CONFIG.vocab_size)]),
    }
    return str(write_gguf(folder / "model.gguf", tensors, keys))


def replaced(*pairs):
    source = NANOGPT
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


# ---- what agrees


def test_nanogpts_own_module_agrees_at_every_position(compared, capfd):
    result = compared(NANOGPT, "GPT")
    assert result.n_positions == len(IDS) and result.agrees and result.same_top
    assert 0 < result.rms <= result.largest < 1e-4
    assert result.sentence == (
        f"checked: the logits of GPT of mine.py differ by {result.largest:.2g} at most (rms {result.rms:.2g}) "
        "at 12 positions; the likeliest token is the same everywhere"
    )
    out, err = capfd.readouterr()
    assert out == "" and "made by hand" in err and "running" in err


def test_the_numbers_are_those_of_a_comparison_by_hand(compared, tmp_path, twin):
    result = compared(replaced(("return logits, F", "return logits + 0.001 * torch.arange(12.0)[:, None], F")), "GPT")
    with pygpt.Model(model_file(tmp_path, twin)) as model:
        ours = model.logits(IDS).astype(np.float64)
    difference = np.abs(ours - twin.logits(IDS).numpy() - 0.001 * np.arange(12)[:, None])
    assert result.largest == pytest.approx(difference.max(), abs=1e-5)
    assert result.rms == pytest.approx(np.sqrt((difference**2).mean()), abs=1e-5)
    assert not result.agrees and result.same_top and result.n_positions == 12
    first = int((difference.max(axis=1) > 2e-3).argmax()) + 1
    assert first in (3, 4) and f"beyond 0.002 from position {first} on" in result.sentence


WAYS = {
    "a function without arguments": ("\ndef make():\n    return GPT(GPTConfig(16, 40, 2, 2, 32))\n", "make"),
    "the module itself": ("\nmine = GPT(GPTConfig(16, 40, 2, 2, 32))\n", "mine"),
    "a class of names": (
        "\nclass Named(GPT):\n"
        "    def __init__(self, vocab_size, n_embd, *, block_size, n_layer=9, n_head=9, device='x'):\n"
        "        assert device == 'cpu'\n"
        "        super().__init__(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd))\n",
        "Named",
    ),
    "one name that is a setting": (
        "\nclass One(GPT):\n    def __init__(self, vocab_size):\n"
        "        super().__init__(GPTConfig(16, vocab_size, 2, 2, 32))\n",
        "One",
    ),
    "a config that is hinted at": (
        "\n@dataclass\nclass Other:\n    n_layer: int\n    block_size: int\n"
        "\nclass Hinted(GPT):\n    def __init__(self, c: 'Other'):\n"
        "        super().__init__(GPTConfig(c.block_size, 40, c.n_layer, 2, 32))\n",
        "Hinted",
    ),
    "every position, as an object with logits": (
        "\nfrom types import SimpleNamespace\nclass All(GPT):\n    def forward(self, idx):\n"
        "        return SimpleNamespace(logits=super(GPT, self).forward(idx))\n",
        "All",
    ),
    "a dictionary with logits": (
        "\nclass Dict(GPT):\n    def forward(self, idx):\n        return {'logits': super(GPT, self).forward(idx)}\n",
        "Dict",
    ),
    "rows without a batch": (
        "\nclass Rows(GPT):\n    def forward(self, idx, targets=None):\n"
        "        return super(GPT, self).forward(idx)[0]\n",
        "Rows",
    ),
    "a padded vocabulary": (
        "\nclass Wide(GPT):\n    def forward(self, idx):\n"
        "        return F.pad(super(GPT, self).forward(idx), (0, 24), value=-float('inf'))\n",
        "Wide",
    ),
    "in half precision": ("\nclass Half(GPT):\n    def __init__(self, config):\n"
                          "        super().__init__(config)\n        self.bfloat16()\n", "Half"),
    "behind torch.compile": (
        "\nclass Compiled(torch.nn.Module):\n    def __init__(self, config):\n        super().__init__()\n"
        "        self._orig_mod = GPT(config)\n",
        "Compiled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_modules_are_made_and_answer_in_many_ways(compared, way):
    more, name = WAYS[way]
    result = compared(NANOGPT + more, name)
    assert not isinstance(result, str), result
    assert result.agrees and result.n_positions == len(IDS), result.sentence


@pytest.mark.parametrize(
    "config",
    [
        "class GPTConfig:\n    def __init__(self, vocab_size, block_size, **kwargs):\n        self.bias = True\n"
        "        vars(self).update(kwargs, vocab_size=vocab_size, block_size=block_size)\n",
        "class GPTConfig:\n    n_layer = 12\n    n_head = 12\n    n_embd = 768\n    block_size = 1024\n"
        "    vocab_size = 50304\n    bias = True\n",
    ],
    ids=["of minGPT's kind", "of class attributes"],
)
def test_configs_that_are_no_dataclasses_are_filled(compared, config):
    head, _, rest = NANOGPT.partition("@dataclass\nclass GPTConfig:")
    assert compared(head + config + rest[rest.index("\nclass GPT(") :], "GPT").agrees


def test_a_module_that_gives_the_last_position_only_is_compared_there(compared):
    more = "\nclass Last(GPT):\n    def forward(self, idx):\n        return super(GPT, self).forward(idx, last=True)\n"
    result = compared(NANOGPT + more, "Last")
    assert result.agrees and result.n_positions == 1 and "at the one position that it gives" in result.sentence


def test_neighbours_of_the_file_are_imported_and_forgotten(compared, tmp_path):
    for shift in (0.0, 5.0):
        (tmp_path / "mine_parts.py").write_text(f"SHIFT = {shift}\n")
        more = "\nfrom mine_parts import SHIFT\nclass Own(GPT):\n    def forward(self, idx):\n"
        result = compared(NANOGPT + more + "        return super(GPT, self).forward(idx) + SHIFT\n", "Own")
        assert result.agrees == (shift == 0) and "mine_parts" not in sys.modules


def test_buffers_need_not_be_on_both_sides(compared):
    def add_masks(weights):
        for i in range(2):
            weights[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            weights[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    more = (
        "\nclass Masked(GPT):\n    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.register_buffer('tril', torch.ones(4, 4).tril())\n"
        "        self.transformer.h[0].attn.register_buffer('bias', torch.ones(1, 1, 8, 8))\n"
    )
    assert compared(NANOGPT + more, "Masked", add_masks).agrees


def test_a_tied_head_may_be_stored_once(compared):
    assert compared(NANOGPT, "GPT", lambda weights: weights.pop("lm_head.weight")).agrees


# ---- what differs


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('gelu="gelu_erf"', 'gelu="gelu_tanh"'),
        ("logits = super().forward(idx)\n", "logits = super().forward(idx.flip(1)).flip(1)\n"),
        ("return logits, F", "return logits.roll(1, 2), F"),
    ],
    ids=["another GELU", "another order", "other ids"],
)
def test_a_module_that_computes_something_else_is_reported(compared, old, new):
    result = compared(replaced((old, new)), "GPT")
    assert not result.agrees and result.largest > 2e-3
    assert result.sentence.startswith("NOT THE SAME MODEL: the logits of GPT of mine.py differ by ")
    assert f"by {result.largest:.2g} at most" in result.sentence and "beyond 0.002 from position" in result.sentence


def test_the_tolerance_decides(compared, tmp_path, twin):
    source = replaced(("return logits, F", "return logits + 0.0015, F"))
    assert compared(source, "GPT").agrees
    assert not compared(source.replace("0.0015", "0.0025"), "GPT").agrees


# ---- what goes wrong


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        ("import torch\nraise ValueError('no\\n\\x1b[31m data')\n", "GPT",
         r"mine.py: importing it raised ValueError: no \\x1b\[31m data in line 2$"),
        ("def f(:\n", "GPT", "importing it raised SyntaxError: .* in line 1$"),
        ("import no_such_module_here\n", "GPT", "raised ModuleNotFoundError: No module .* in line 1$"),
        ("import sys\n\nprint('training')\nsys.exit(0)\n", "GPT",
         r"importing it ended the program in line 4; move what trains or samples below if __name__ == \"__main__\":$"),
        ("import os\nos.chdir('/')\nassert False\n", "GPT", "raised AssertionError in line 3$"),
        ("x = 1\n", "GPT", "expected a class or a function GPT in it, found none; its modules: none$"),
        (NANOGPT, "GTP", "found none; its modules: Block, GPT$"),
        (NANOGPT, "GPTConfig", "expected GPTConfig to make a torch.nn.Module, found GPTConfig$"),
        (NANOGPT + "\ndef make(a, b, c=3):\n    pass\n", "make",
         r"cannot tell what to call make\(a, b, c=3\) with; name a function without arguments that makes the module$"),
        (NANOGPT + "\ndef make(n_layer, b):\n    pass\n", "make", r"cannot tell what to call make\(n_layer, b\)"),
        (NANOGPT + "\ndef make():\n    return len(3)\n", "make",
         r"make\(\) raised TypeError: object of type 'int' has no len\(\) in line LAST$"),
        (replaced(("assert config.vocab_size is not None", "assert config.vocab_size is None")), "GPT",
         r"GPT\(GPTConfig\) raised AssertionError in line ASSERT$"),
        (replaced(('print("running")', "raise RuntimeError")), "GPT", "forward raised RuntimeError in line RUN$"),
        (replaced(('print("running")', "raise SystemExit(3)")), "GPT", "forward ended the program in line RUN$"),
        (replaced(('print("running")', "return None")), "GPT", "expected the module to return logits, found NoneType$"),
        (replaced(('print("running")', "return torch.zeros(5)")), "GPT", r"found a tensor of \[5\]$"),
        (replaced(('print("running")', "return torch.zeros(1, 7, 40)")), "GPT",
         "expected logits for each of 12 tokens, or for the last, found 7 rows$"),
        (replaced(('print("running")', "return torch.zeros(1, 12, 39)")), "GPT",
         "gives logits of 39 ids, the checkpoint has 40$"),
        (replaced(('print("running")', "return torch.full((1, 12, 40), float('nan'))")), "GPT",
         "the logits of GPT are not all finite numbers$"),
        (replaced(("config.n_embd,", "64,")), "GPT",
         r"the module has transformer.wte.weight as \[40, 64\], transformer.wpe.weight as \[16, 64\], .* and 2\d more, "
         "which the checkpoint has in another shape; is it the code that trained this checkpoint"),
        (replaced(("config.n_layer,", "3,")), "GPT",
         "the module has transformer.h.2.ln_1.weight, .* and 9 more, which the checkpoint does not hold; is it"),
        (replaced(("config.n_layer,", "1,")), "GPT",
         "the checkpoint holds transformer.h.1.ln_1.weight, .* and 9 more, which the module does not have; is it"),
        (replaced(("config.bias,", "False,")), "GPT", "the checkpoint holds transformer.h.0.ln_1.bias, .* and 10 more"),
    ],
)  # fmt: skip
def test_what_his_code_does_wrong_is_one_sentence(compared, source, name, sentence):
    lines = source.splitlines()
    places = {"LAST": len(lines), "ASSERT": find(lines, "assert config"), "RUN": find(lines, "raise ")}
    for word, place in places.items():
        sentence = sentence.replace(word, str(place))
    found = compared(source, name)
    assert isinstance(found, str) and "mine.py: " in found and re.search(sentence, found), found


def find(lines, text):
    return next((i for i, line in enumerate(lines, 1) if text in line), 0)


def test_a_parameter_that_is_missing_is_no_buffer(compared):
    """attn.bias is a mask only where it is no vector."""
    found = compared(NANOGPT, "GPT", lambda weights: weights.update({"transformer.h.0.attn.bias": torch.ones(16)}))
    assert "the checkpoint holds transformer.h.0.attn.bias, which the module does not have" in found
    found = compared(NANOGPT, "GPT", lambda weights: weights.pop("transformer.h.1.attn.c_attn.bias"))
    assert "the module has transformer.h.1.attn.c_attn.bias, which the checkpoint does not hold" in found


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("mine.py", "expected a file and a name in it, as in reference.py:GPT"),
        (":GPT", "expected a file and a name"),
        ("mine.py:no name", "expected a file and a name"),
        ("/absent/mine.py:GPT", "/absent/mine.py: there is no such file"),
    ],
)
def test_a_spec_that_names_nothing_is_one_sentence(spec, sentence):
    with pytest.raises(pygpt.Error, match=sentence):
        check(spec, {}, {}, "model.gguf", [1])


def test_no_tokens_are_nothing_to_compare(compared):
    assert "needs at least one token" in compared(NANOGPT, "GPT", ids=[])


def test_a_file_without_a_state_dict_has_no_names_to_load(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('must not run')")
    with pytest.raises(pygpt.Error, match="needs a checkpoint with a state_dict"):
        check(f"{tmp_path}/mine.py:GPT", {}, {}, "model.gguf", [1])


def test_an_interrupt_is_not_taken_for_a_mistake(compared):
    with pytest.raises(KeyboardInterrupt):
        compared("raise KeyboardInterrupt\n", "GPT")


def test_without_torch_a_sentence_says_so(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('must not run')")
    program = (
        "import sys; sys.modules['torch'] = None\nfrom pygpt.convert.check import check\nimport pygpt\n"
        "try: check(sys.argv[1] + ':GPT', {'a': 1}, {}, 'model.gguf', [1])\nexcept pygpt.Error as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "mine.py"], capture_output=True, text=True)
    assert done.stdout == (
        "--check runs your module in PyTorch, which is not installed: pip install torch; or convert without --check\n"
    )
    assert "torch" not in subprocess.check_output(
        [sys.executable, "-c", "import pygpt.convert.check, sys; print(*sys.modules)"], text=True
    ).replace("torch_file", "")


def test_the_result_is_plain_numbers(compared):
    result = compared(NANOGPT, "GPT")
    assert {f.name: type(getattr(result, f.name)) for f in dataclasses.fields(result)} == {
        "largest": float,
        "rms": float,
        "n_positions": int,
        "same_top": bool,
        "agrees": bool,
        "sentence": str,
    }
