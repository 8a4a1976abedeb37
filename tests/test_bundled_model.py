"""The model that ships: it is what its checkpoint converts to, small, and as good as its training log says."""

import re
from pathlib import Path

from pygpt.convert import convert_checkpoint

import pygpt
from pygpt.measure import perplexity
from pygpt.model import BUNDLED

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "shakespeare"


def test_the_bundled_file_is_what_its_checkpoint_converts_to(tmp_path):
    convert_checkpoint(EXAMPLE / "ckpt.pt", tmp_path / "again.gguf", gelu="erf", proof=False)  # train.py says which
    assert (tmp_path / "again.gguf").read_bytes() == Path(BUNDLED).read_bytes()


def test_it_has_at_most_4_million_parameters_and_its_checkpoint_10_megabytes():
    with pygpt.Model() as model:
        assert model.info.n_params <= 4_000_000
    assert (EXAMPLE / "ckpt.pt").stat().st_size < 10_000_000


def test_its_loss_is_the_one_in_the_training_log():
    """On the whole held-out text; the log's figure is that of the unquantized weights."""
    best = min(float(loss) for loss in re.findall(r"val ([\d.]+)", (EXAMPLE / "training.log").read_text()))
    text = (EXAMPLE / "input.txt").read_text(encoding="utf-8")
    with pygpt.Model() as model:
        found = perplexity(model, text[int(0.9 * len(text)) :])
    assert abs(found.nats_per_token / best - 1) < 0.003
