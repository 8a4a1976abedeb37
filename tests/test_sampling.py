"""What the sampler promises: its steps in their order, its random numbers, and that a seed is a text."""

from collections import Counter

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf
from reference.sampler import philox, probabilities, uniform

import pygpt
from pygpt._lib import GeneratorHandle, ModelHandle, SessionHandle, ids_array
from pygpt.model import Sampling

PROMPT = [3, 1, 4, 1, 5]
CASES = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.6},
    "min-p": {"min_p": 0.2},
    "repetition": {"repeat_penalty": 1.8},
    "repetition in a window of 2": {"repeat_penalty": 3.0, "repeat_window": 2},
    "banned": {"banned": [7, 8, 9, 10, 11]},
    "all together": {
        "temperature": 1.4,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repeat_penalty": 1.2,
        "banned": [0],
    },
}


@pytest.fixture
def tiny_model(random_model):
    """65 tokens, a context of 64."""
    return random_model("".join(chr(0x100 + i) for i in range(65)), n_ctx=64, type="f32")


@pytest.fixture
def tied_model(tmp_path):
    """All weights are zero, so all ids are equally likely."""
    keys = gpt2_keys(32, 64, 1) | character_keys([chr(0x100 + i) for i in range(65)])
    return write_gguf(tmp_path / "tied.gguf", gpt2_tensors(65, 32, 64, 1, None), keys)


def first_ids(path, n: int, seed: int = 5, **settings) -> list[int]:
    """The first id that each of n streams chooses after PROMPT."""
    banned = ids_array(settings.pop("banned", []))
    model, found = ModelHandle(path, 1), []
    for stream in range(n):
        sampling = Sampling.checked(**{"temperature": 1.0, "top_k": 0, **settings, "seed": seed, "stream": stream})
        core = GeneratorHandle(SessionHandle(model), banned=banned, stop=ids_array([]), **sampling._asdict())
        core.feed(ids_array(PROMPT))
        found += core.next(1, 1.0)
    return found


def test_the_random_numbers_are_philoxs():
    """Known answers from Random123's kat_vectors for philox4x32, 10 rounds."""
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox((ones, ones, ones, ones), (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("name", CASES)
def test_every_draw_is_the_twins(tiny_model, name):
    """Without top_p ids are walked in their order, so the twin knows each draw; with it the frequencies must agree."""
    settings, n = CASES[name], 400
    with pygpt.Model(tiny_model) as model:
        p = probabilities(model.logits(PROMPT)[-1], PROMPT, **settings)
    found = first_ids(tiny_model, n, **settings)
    assert all(p[id] > 0 for id in found)
    if settings.get("top_p", 1) < 1:
        frequency = np.bincount(found, minlength=len(p)) / n
        assert np.abs(frequency - p).sum() < 4 * np.sqrt(np.count_nonzero(p) / n)
    else:
        edges = p.cumsum()
        expected = [int(np.searchsorted(edges, uniform(5, stream, 0), side="right")) for stream in range(n)]
        assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1  # one may fall on an edge


def test_top_k_keeps_ties_with_the_kth(tied_model):
    """All ids of that model are equally likely: top_k 1 must not prefer one of them."""
    assert len(Counter(first_ids(tied_model, 200, top_k=1))) > 20


def test_temperature_0_takes_the_likeliest_that_is_not_banned(tiny_model):
    with pygpt.Model(tiny_model) as model:
        order = np.argsort(-model.logits(PROMPT)[-1])
    assert first_ids(tiny_model, 1, temperature=0) == [order[0]]
    assert first_ids(tiny_model, 1, temperature=0, banned=order[:3].tolist()) == [order[3]]


def test_a_seed_is_a_text_and_another_seed_another(tiny_model):
    with pygpt.Model(tiny_model) as model:
        texts = [model.complete(PROMPT, 40, seed=seed) for seed in (1, 1, 2)]
        other_stream = model.complete(PROMPT, 40, seed=1, stream=1)
    assert texts[0] == texts[1] != texts[2]
    assert other_stream != texts[0]
