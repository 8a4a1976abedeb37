"""The core evaluates rows (token, sequence, position): prompts, steps and batches are sets of them.

These speak to the C interface itself, where Python's Session offers only one sequence.
"""

import numpy as np
import pytest
from pygpt._core import ffi, lib


@pytest.fixture
def tiny_model(random_model):
    """65 tokens, a context of 32."""
    return random_model("".join(chr(0x100 + i) for i in range(65)), n_ctx=32, type="q8_0")


class Core:
    """A model and a session of several sequences, by the C interface."""

    def __init__(self, path, n_sequence=3, n_ctx=0, threads=2):
        self.model = lib.gpt_model_open(str(path).encode(), threads)
        assert self.model, sentence()
        info = ffi.new("struct gpt_model_info *")
        lib.gpt_model_get_info(self.model, info)
        self.n_vocab, self.n_ctx = info.n_vocab, info.n_ctx
        self.session = lib.gpt_session_new(self.model, n_sequence, n_ctx)
        assert self.session, sentence()

    def eval(self, rows):
        """rows of (token, sequence, position) -> logits (rows, n_vocab), or a code."""
        out = np.empty((len(rows), self.n_vocab), np.float32)
        code = lib.gpt_session_eval(
            self.session, [(*row, 1) for row in rows], len(rows), ffi.from_buffer("float[]", out, require_writable=True)
        )
        return out if code == 0 else code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib.gpt_session_free(self.session)
        lib.gpt_model_close(self.model)


def sentence() -> str:
    return ffi.string(lib.gpt_last_error()).decode()


def test_sequences_mixed_in_one_batch_give_the_same_bits_as_each_alone(tiny_model):
    texts = [[1, 2, 3, 4], [9, 8, 7], [5, 5, 5, 5, 5]]
    with Core(tiny_model) as core:
        alone = [core.eval([(id, s, p) for p, id in enumerate(ids)]) for s, ids in enumerate(texts)]
    rows = [(ids[p], s, p) for p in range(5) for s, ids in enumerate(texts) if p < len(ids)]
    with Core(tiny_model) as core:
        mixed = core.eval(rows)
    for row, logits in zip(rows, mixed, strict=True):
        assert np.array_equal(logits, alone[row[1]][row[2]])


def test_rewinding_and_feeding_something_else_forgets_what_was_there(tiny_model):
    with Core(tiny_model) as core:
        fresh = core.eval([(1, 0, 0), (2, 0, 1), (3, 0, 2)])
        core.eval([(6, 1, 0), (7, 1, 1), (8, 1, 2), (9, 1, 3)])
        assert lib.gpt_session_rewind(core.session, 1, 0) == 0
        assert np.array_equal(core.eval([(1, 1, 0), (2, 1, 1), (3, 1, 2)]), fresh)


def test_a_copied_sequence_goes_its_own_way(tiny_model):
    with Core(tiny_model) as core:
        core.eval([(1, 0, 0), (2, 0, 1)])
        assert lib.gpt_session_copy(core.session, 0, core.session, 2) == 0
        a, b = core.eval([(3, 0, 2)]), core.eval([(3, 2, 2)])
        assert np.array_equal(a, b)
        core.eval([(4, 2, 3)])
        assert (lib.gpt_session_length(core.session, 0), lib.gpt_session_length(core.session, 2)) == (3, 4)


@pytest.mark.parametrize(
    "rows, code, words",
    [
        ([(65, 0, 0)], "GPT_EINVAL", "token 65"),
        ([(-1, 0, 0)], "GPT_EINVAL", "token -1"),
        ([(1, 3, 0)], "GPT_EINVAL", "sequence 3"),
        ([(1, 0, 1)], "GPT_EINVAL", "position 1"),
        ([(1, 0, 0), (1, 0, 2)], "GPT_EINVAL", "goes on at 1"),
        ([(1, 0, p) for p in range(33)], "GPT_EFULL", "holds 32 tokens"),
        ([], "GPT_EINVAL", "0 rows"),
    ],
)
def test_wrong_rows_get_a_sentence_and_nothing_is_appended(tiny_model, rows, code, words):
    with Core(tiny_model) as core:
        assert core.eval(rows) == getattr(lib, code)
        assert words in sentence()
        assert [lib.gpt_session_length(core.session, s) for s in range(3)] == [0, 0, 0]


def test_a_context_beyond_the_models_is_refused_with_both_numbers(tiny_model):
    with Core(tiny_model) as core:
        assert not lib.gpt_session_new(core.model, 1, 33)
        assert "33" in sentence() and "32" in sentence()
