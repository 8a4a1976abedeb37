"""No conversion takes more than 300 MB and twice its largest tensor, trials on text included."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import write_gguf

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from reference import gpt as nanogpt  # noqa: E402
from reference import lecture, llama2c, llmc, mingpt, nanochat  # noqa: E402

WIDTH = 1024
CHARACTERS = "".join(chr(0x4E00 + i) for i in range(6_000))
N_BPE = 50257
PROGRAM = """
import re, sys
sys.modules["torch"] = None
from pygpt.convert import convert_checkpoint
report = convert_checkpoint(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
assert report.proof.text or "proof" in sys.argv[3], report.proof.left_out
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def save(path, value):
    torch.save(value, path)
    return path


def write_text(folder):
    (folder / "input.txt").write_text(CHARACTERS, encoding="utf-8")


def as_lecture(folder):
    write_text(folder)
    c = lecture.Config(n_vocab=len(CHARACTERS), n_ctx=64, n_embd=WIDTH, n_head=8, n_layer=1)
    return save(folder / "m.pt", lecture.random_gpt(c).state_dict()), {}, len(CHARACTERS) * WIDTH


def as_mingpt(folder):
    write_text(folder)
    c = mingpt.Config(n_vocab=len(CHARACTERS), n_ctx=64, n_embd=WIDTH, n_head=8, n_layer=1)
    return save(folder / "m.pt", mingpt.random_gpt(c).state_dict()), {"n_head": 8}, len(CHARACTERS) * WIDTH


def as_nanochat(folder):
    sizes = {"sequence_len": 64, "vocab_size": N_BPE, "padded_vocab": N_BPE + 47, "n_embd": 256, "n_layer": 2}
    path = nanochat.save(folder, nanochat.random_gpt(nanochat.generation("N4", n_head=8, n_kv_head=8, **sizes)))
    return path, {"tokenizer": "gpt2"}, N_BPE * 256


def as_llama2c(folder):
    sizes = {"dim": WIDTH, "hidden_dim": 1024, "n_layers": 1, "n_heads": 8, "n_kv_heads": 8}
    c = llama2c.Config(**sizes, vocab_size=8000, max_seq_len=64)
    pieces = llama2c.byte_pieces({f"word{i}": -float(i) for i in range(8000 - 259)})
    (folder / "tokenizer.bin").write_bytes(llama2c.tokenizer_bin(pieces))
    return llama2c.save(folder / "m.bin", llama2c.version_2(llama2c.random_model(c))), {}, 8000 * WIDTH


def as_llmc(folder):
    c = nanogpt.Config(n_layer=1, n_head=8, n_embd=256, block_size=64, vocab_size=N_BPE)
    path = folder / "m.bin"
    path.write_bytes(llmc.gpt2(nanogpt.random_gpt(c), version=5))
    return path, {}, N_BPE * 256


def as_deep_nanogpt(folder):
    """Its cache would take more than its tensors."""
    write_text(folder)
    c = nanogpt.Config(n_layer=44, n_head=8, n_embd=256, block_size=2048, vocab_size=len(CHARACTERS))
    return save(folder / "ckpt.pt", nanogpt.checkpoint(nanogpt.GPT(c))), {"gelu": "erf"}, len(CHARACTERS) * 256


def as_gguf(folder):
    """A file that is larger than the limit."""
    tensors = {f"blk.{i}.ffn_up.weight": np.full((1024, 1024), i, np.float32) for i in range(90)}
    keys = {"general.architecture": "another", "another.context_length": 8}
    return write_gguf(folder / "m.gguf", tensors, keys), {"proof": False}, 1024 * 1024


@pytest.mark.parametrize("make", [as_lecture, as_mingpt, as_nanochat, as_llama2c, as_llmc, as_deep_nanogpt, as_gguf])
def test_the_peak_is_below_300_mb_and_twice_the_largest_tensor(tmp_path, make):
    path, options, largest = make(tmp_path)
    arguments = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "out.gguf"), repr(options)]
    megabytes = float(subprocess.check_output(arguments, text=True))
    print(f"{make.__name__}: {megabytes:.0f} MB, twice the largest tensor {2 * 4 * largest / 1e6:.0f} MB")
    assert 20 < megabytes < 300 + 2 * 4 * largest / 1e6
