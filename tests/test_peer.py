"""What is exact as llama.cpp's `gpt2` or `llama` is written so: it gives the same ids and logits (`make peer`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from pygpt.convert import convert_checkpoint  # noqa: E402
from reference import gpt, llama2c, llmc, mingpt  # noqa: E402
from test_convert_llama2c import BIN, SHAPES, TEXTS, checkpoint, converted, random_model  # noqa: E402

PYTHON = Path(os.environ.get("PYGPT_PEER", Path(__file__).resolve().parents[1] / "build/bench/peer/bin/python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="skipped: llama.cpp is not built here; make peer builds it")
IDS = np.random.default_rng(1).integers(0, 65, 30).tolist()
GELU = 2e-2  # llama.cpp's GELU is a table of halves: 5e-3 of logits that spread by 4; another scale or order makes 0.1
PROGRAM = """
import json, sys
import llama_cpp, numpy
path, texts, ids = json.load(sys.stdin)
f32 = llama_cpp.GGML_TYPE_F32  # its cache has half of the bits otherwise
model = llama_cpp.Llama(path, n_ctx=32, logits_all=True, type_k=f32, type_v=f32, verbose=False)
encoded = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
model.eval(ids)
json.dump([encoded, numpy.array(model.scores[: len(ids)], float).tolist()], sys.stdout)
"""


def peer(path, ids=IDS, texts=()):
    """(ids of the texts, logits after each of ids) as llama.cpp has them."""
    question = json.dumps([str(path), list(texts), ids]).encode()
    encoded, logits = json.loads(subprocess.run([PYTHON, "-c", PROGRAM], input=question, stdout=-1, check=True).stdout)
    return encoded, np.array(logits)


def difference(path, model):
    with torch.no_grad():
        return np.abs(peer(path)[1] - model(torch.tensor([IDS]))[0].numpy()).max()


@pytest.mark.parametrize("shape", list(SHAPES)[:2])
def test_llama2_c(tmp_path, shape):
    model = random_model(SHAPES[shape])
    _, report = converted(tmp_path, checkpoint(model))
    texts = [text for text in TEXTS if text]  # the package's tokenize wants one
    encoded, logits = peer(report.path, texts=texts)
    assert encoded == [llama2c.run_c_encode(BIN, text) for text in texts]
    assert np.abs(logits - model.logits(IDS)).max() < 2e-3


@pytest.mark.parametrize("old", [False, True], ids=["tanh", "erf"])
def test_mingpt(tmp_path, old):
    model = mingpt.random_gpt(mingpt.Config(n_embd=48, n_head=3), old)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "input.txt").write_text("".join(chr(33 + i) for i in range(65)))
    report = convert_checkpoint(tmp_path / "model.pt", type="f32", n_head=3, proof=False)
    assert difference(report.path, model) < GELU


def test_llm_c(tmp_path):
    model = gpt.random_gpt(gpt.Config(n_embd=48, n_head=3, vocab_size=50257, gelu="gelu_tanh"))
    (tmp_path / "m.bin").write_bytes(llmc.gpt2(model))
    report = convert_checkpoint(tmp_path / "m.bin", type="f32", proof=False)
    assert np.abs(peer(report.path)[1] - model.logits(IDS).numpy()).max() < GELU
