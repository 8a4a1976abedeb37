"""What a checkpoint does not say is tried on text, and what rounding costs is measured."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that are converted here: pip install torch")

from pygpt.convert import convert_checkpoint, evidence, proof  # noqa: E402
from pygpt.convert.checkpoint import Answer, Question  # noqa: E402
from pygpt.convert.evidence import CLEAR, at_best_temperature, decide, difference, loss_curve  # noqa: E402
from pygpt.convert.sample_text import read_begin  # noqa: E402
from reference.nanogpt_checkpoint import checkpoint, save, save_meta  # noqa: E402

import pygpt  # noqa: E402
from pygpt.measure import nats  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "shakespeare" / "ckpt.pt"
A, B, C = (Answer(name, {}) for name in "ABC")


def question(*answers, **changes):
    return Question("the letter", "--letter", list(answers), "as always", **changes)


def series(*means, n=2048, noise=0.3, seed=0):
    """Losses of several candidates on the same tokens: common noise, and a little of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(3, 2, n)
    return [common + mean + noise * rng.standard_normal(n) for mean in means]


# ---- deciding


def test_a_clear_difference_decides_against_the_rule():
    answer, sentence = decide(question(A, B), series(0.1, 0), "a text")
    assert answer is B
    assert sentence.startswith("The letter is B: 0.") and "nats per token better than A on a text" in sentence


def test_a_difference_within_its_error_decides_nothing_and_is_called_unclear():
    for mean in (0.001, -0.001):
        answer, sentence = decide(question(A, B), series(mean, 0), "a text")
        assert answer is A and "as always; UNCLEAR: a text does not tell A and B apart (--letter decides)" in sentence


def test_what_is_clearly_worse_is_out_even_if_the_rest_is_unclear():
    answer, sentence = decide(question(A, B, C), series(0.5, 0.001, 0), "a text")
    assert answer is B and "the likeliest of them; UNCLEAR: a text does not tell B and C apart" in sentence


def test_an_answer_under_which_nothing_can_be_computed_is_out():
    (values,) = series(0)
    for entropy in (np.inf, 0.0):  # however little the model has learned
        assert decide(question(A, B), [np.full(len(values), np.inf), values], "a text", entropy)[0] is B


def test_a_difference_that_a_little_training_would_turn_round_decides_nothing():
    (values,) = series(0)
    for gap, name in ((0.9e-4, "A"), (1.1e-4, "B")):
        assert decide(question(A, B), [values + gap, values], "a text")[0].name == name


def test_a_model_that_has_learned_nothing_yet_decides_nothing():
    tried = series(0.1, 0)
    answer, sentence = decide(question(A, B), tried, "a text", entropy=3.2)
    assert answer is A and "as always; UNCLEAR: the model predicts a text hardly better than frequencies" in sentence
    assert decide(question(A, B), tried, "a text", entropy=4.5)[0] is B
    assert decide(question(A, B), tried, "a text", entropy=3.6)[0] is B  # by 0.1 nats
    assert decide(question(A, B), series(0.045, 0), "a text", entropy=3.6)[0] is A  # by 0.045: it may yet turn round
    assert decide(question(A, B), series(0.045, 0), "a text", entropy=4.5)[0] is B
    assert evidence.entropy(np.array([0, 1, 2, 3] * 800), 4) == pytest.approx(np.log(4), rel=1e-3)
    rng = np.random.default_rng(0)  # of ids that are all seen once, frequencies know nothing
    assert evidence.entropy(rng.permutation(1000)[:100], 1000) > 0.9 * np.log(1000)


def drawn_from_capped(cap, n=20_000, n_vocab=40):
    """Numbers before a soft cap, of which the sure ones are large, and ids drawn as a model with that cap predicts."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 1.5, (n, n_vocab))
    raw[:, 0] += rng.uniform(0, 10, n)
    p = np.cumsum(np.exp(capped(raw, cap)), axis=1)
    ids = (p > rng.random((n, 1)) * p[:, -1:]).argmax(axis=1)
    return raw.astype(np.float32), ids.astype(np.int32)


def capped(raw, cap):
    return (cap * np.tanh(raw / cap)).astype(np.float32)


def test_a_loss_curve_is_the_loss_under_each_factor():
    logits, ids = drawn_from_capped(15.0, 200)
    assert evidence.FACTORS[evidence.ONE] == pytest.approx(1.0)
    for factor, found in zip(evidence.FACTORS, loss_curve(logits, ids), strict=True):
        np.testing.assert_allclose(found, nats(logits.astype(np.float64) * factor, ids), atol=2e-4, rtol=2e-4)


def test_the_best_temperature_is_found():
    raw, ids = drawn_from_capped(15.0)
    logits = capped(raw, 15.0)
    least = nats(logits, ids).mean()  # they were drawn so
    for factor in (0.65, 0.93, 1.0, 1.28, 2.0):
        assert at_best_temperature(loss_curve(factor * logits, ids)).mean() == pytest.approx(least, abs=1e-4)
        assert factor == 1.0 or nats(factor * logits, ids).mean() > least + 1e-3


@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.0, 1.3, 1.6])
def test_a_factor_alone_is_never_clear(temperature):
    """However wrong the temperature is at which a model meets a text: nothing but that is between these answers."""
    raw, ids = drawn_from_capped(15.0)
    logits = capped(raw, 15.0) / temperature
    curves = [loss_curve(factor * logits, ids) for factor in (1.0, 0.8, 0.95, 1.05, 1.2)]
    tried = [at_best_temperature(curve) for curve in curves]
    answer, sentence = decide(question(A, B, C, Answer("D", {}), Answer("E", {})), tried, "a text")
    assert answer is A and "UNCLEAR" in sentence


def test_on_a_text_that_training_did_not_see_only_a_large_difference_counts():
    for gap, name in ((0.04, "A"), (0.07, "B")):
        answer, sentence = decide(question(A, B), series(gap, 0, noise=0.1), "a page", was_trained_on=False)
        assert answer.name == name
    answer, sentence = decide(question(A, B), series(0.04, 0, noise=0.1), "a page", was_trained_on=False)
    assert sentence.endswith("(--letter decides, its training text by --text may).")
    assert decide(question(A, B), series(0.04, 0, noise=0.1), "a page")[0] is B


def test_a_model_that_is_too_modest_does_not_speak_for_a_higher_cap():
    """Its losses alone do, and clearly: this is what models that were trained for minutes look like."""
    raw, ids = drawn_from_capped(15.0)
    modest = 0.9 * raw
    low, high = (capped(modest, cap) for cap in (15.0, 20.0))
    gap, error = difference(nats(low, ids), nats(high, ids))
    assert gap > 5 * error > 0
    tried = [at_best_temperature(loss_curve(logits, ids)) for logits in (low, high)]
    assert decide(question(A, B), tried, "a text")[0] is A


def test_equal_losses_are_unclear():
    (values,) = series(0)
    answer, sentence = decide(question(A, B), [values, values.copy()], "a text")
    assert answer is A and "UNCLEAR" in sentence


def test_where_no_rule_helps_the_option_is_asked_for():
    for tried, words in ((None, "it was not tried on text"), (series(0, 0.0001), "does not tell A and B apart")):
        with pytest.raises(pygpt.Error, match=f"{words}.*name it with --letter"):
            decide(question(A, B, has_default=False), tried, "a text")
    assert decide(question(A, B, has_default=False), series(1, 0), "a text")[0] is B


def test_the_error_counts_neighbours_as_alike():
    """Losses come in runs; taken for independent they would seem sixteen times as many."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        runs = np.repeat(rng.standard_normal(128), 16)
        mean, error = difference(runs, np.zeros_like(runs))
        found.append(abs(mean) / error)
    assert np.mean(np.array(found) > CLEAR) < 0.03
    independent = 16 * 128
    assert np.mean(np.array(found)) > 0.5 and independent == len(runs)


# ---- texts


def test_the_begin_of_a_long_text_is_taken_in_whole_lines(tmp_path):
    """Training saw it; on what it did not see a model is too sure of itself, which speaks for what softens it."""
    path = tmp_path / "input.txt"
    path.write_text("".join(f"line {i}\n" for i in range(100_000)))
    text = read_begin(str(path))
    assert text.startswith("line 0\n") and text.endswith("\n") and 131_000 < len(text) <= 1 << 17
    path.write_text("x" * 200_000)
    assert len(read_begin(str(path))) == 1 << 17
    path.write_text("one line\n")
    assert read_begin(str(path)) == "one line\n"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(pygpt.Error, match="expected text in UTF-8, found none"):
        read_begin(str(path))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_begin(str(tmp_path / "none.txt"))


def letters(tmp_path, n_lines=400):
    """A text of 65 different characters, and a model's checkpoint beside its meta.pkl."""
    rng = np.random.default_rng(0)
    characters = [chr(33 + i) for i in range(64)] + ["\n"]
    lines = ("".join(rng.choice(characters[:64], 60)) for _ in range(n_lines))
    (tmp_path / "input.txt").write_text("\n".join([*lines, ""]))
    save_meta(tmp_path / "meta.pkl", "".join(sorted(characters)))
    return save(tmp_path / "ckpt.pt", checkpoint())


# ---- the report


def test_the_report_shows_candidates_costs_and_predictions(tmp_path):
    report = convert_checkpoint(letters(tmp_path), type="q4_0")
    found = report.proof
    assert found.text == "input.txt" and found.n_tokens == 8192 and found.type == "f32"
    assert found.n_tried == 24399  # all of it: answers may differ by little
    assert [(t.topic, t.name) for t in found.trials] == [("the GELU", "erf"), ("the GELU", "tanh")]
    assert [t.is_taken for t in found.trials].count(True) == 1
    assert {c.type for c in found.costs} == {"q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"}
    assert [c.type for c in found.costs if c.is_written] == ["q4_0"]
    costs = {c.type: c for c in found.costs}
    assert costs["q8_0"].n_bytes > costs["q4_0"].n_bytes
    assert found.bits == pytest.approx(found.nats / np.log(2))  # a character is a byte
    assert len(found.predictions) == 5 and all(0 < p < 1 for _, p in found.predictions)
    text = str(report)
    assert "tried on 24,399 tokens of input.txt, nats per token in f32, each at its best temp" in text
    assert "\n  the GELU: erf " in text
    assert "rounding costs, beside float32:\n  q8_0 " in text and "written" in text


def test_losses_are_those_of_perplexity(tmp_path):
    from pygpt.measure import perplexity

    report = convert_checkpoint(letters(tmp_path), type="f32")
    text = read_begin(str(tmp_path / "input.txt"))[: report.proof.n_tokens + 1]
    with pygpt.Model(report.path) as model:
        found = perplexity(model, text)
    assert found.n_tokens == report.proof.n_tokens
    assert found.nats_per_token == pytest.approx(report.proof.nats, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(report.proof.bits, rel=1e-6)


def test_an_option_leaves_nothing_to_try(tmp_path):
    report = convert_checkpoint(letters(tmp_path), gelu="tanh")
    assert report.proof.trials == [] and "The GELU is tanh, as the option says." in report.assumptions
    assert report.proof.costs


def test_without_proof_the_rule_stands_and_says_so(tmp_path):
    report = convert_checkpoint(letters(tmp_path), proof=False)
    assert report.proof == proof.Proof()
    assert "The GELU is erf, as in nanoGPT since 2023-06-14; not tried on text (--gelu decides)." in report.assumptions


def test_what_would_take_much_memory_is_left_out_and_said(tmp_path, monkeypatch):
    path = letters(tmp_path)
    monkeypatch.setattr(proof, "MEMORY", -(1 << 30))
    report = convert_checkpoint(path)
    assert report.proof.text == "" and all("--proof does it" in line for line in report.proof.left_out)
    assert "not measured: " in str(report)
    assert convert_checkpoint(path, proof=True).proof.costs


def test_a_disk_without_room_for_trials_is_said_and_the_file_written(tmp_path, monkeypatch):
    path = letters(tmp_path)
    real = proof.write

    def full(checkpoint, out, type, **settings):
        raise proof.DiskFull("no room")

    monkeypatch.setattr(proof, "write", full)
    report = convert_checkpoint(path)
    assert "the disk has no room to try f32" in report.proof.left_out
    assert (tmp_path / "ckpt.gguf").exists() and report.proof.text == "input.txt"
    monkeypatch.setattr(proof, "write", real)


def test_trials_leave_nothing_behind(tmp_path):
    path = letters(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    convert_checkpoint(path)
    assert {p.name for p in tmp_path.iterdir()} - before == {"ckpt.gguf"}


def test_a_type_that_cannot_hold_the_numbers_is_left_out(tmp_path):
    path = letters(tmp_path)
    value = checkpoint()
    value["model"]["transformer.h.0.mlp.c_fc.weight"] *= 1e7
    save(path, value)
    report = convert_checkpoint(path, type="f32")
    assert report.proof.costs == [c for c in report.proof.costs if c.type == "f32"]
    assert any(line.startswith("q8_0: ") and "more than q8_0 can" in line for line in report.proof.left_out)


# ---- a conversion never fails, and destroys nothing, for the sake of its proof


def test_what_was_found_by_itself_is_never_written_over(tmp_path):
    path = letters(tmp_path)
    (tmp_path / "ref.py").write_text("GPT = 1")
    for name in ("input.txt", "meta.pkl"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(pygpt.Error, match="is an input too"):
            convert_checkpoint(path, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(pygpt.Error, match="is an input too"):
        convert_checkpoint(path, tmp_path / "ref.py", check=f"{tmp_path / 'ref.py'}:GPT")


def test_a_check_that_cannot_be_is_said_before_anything_is_written(tmp_path):
    path = letters(tmp_path)
    for spec, match in (("none.py:GPT", "there is no such file"), ("ref.py", "expected a file and a name")):
        with pytest.raises(pygpt.Error, match=match):
            convert_checkpoint(path, check=spec)
    assert not (tmp_path / "ckpt.gguf").exists()


def test_fewer_characters_than_predictions_are_enough(tmp_path):
    save_meta(tmp_path / "meta.pkl", "ACGT")
    (tmp_path / "input.txt").write_text("ACGT" * 1000)
    path = save(tmp_path / "ckpt.pt", checkpoint(vocab_size=64))
    assert len(convert_checkpoint(path).proof.predictions) == 4


@pytest.mark.parametrize("data", [b"", b" \n \n", "one".encode("utf-16"), b"\n"])
def test_a_text_that_says_nothing_gives_way_to_the_one_that_ships(tmp_path, data):
    path = letters(tmp_path)
    (tmp_path / "input.txt").write_bytes(data)
    assert convert_checkpoint(path).proof.text in ("pygpt's English sample", "")
    assert (tmp_path / "ckpt.gguf").exists()


def test_a_text_of_one_line_is_a_text(tmp_path):
    path = letters(tmp_path)
    (tmp_path / "input.txt").write_text("".join(chr(33 + i % 64) for i in range(5000)) + "\n")
    assert convert_checkpoint(path).proof.text == "input.txt"


def test_weights_that_no_answer_computes_with_are_converted_and_said(tmp_path):
    path = letters(tmp_path)
    value = checkpoint()
    for name in ("transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight"):
        value["model"][name] = torch.full_like(value["model"][name], 3e38)
    save(path, value)
    report = convert_checkpoint(path, type="f32")
    assert (tmp_path / "ckpt.gguf").exists() and report.proof.nats is None
    assert any("logits are not numbers" in line for line in report.proof.left_out)
    assert not any(".pygpt-" in line for line in report.proof.left_out)


def test_a_model_file_that_only_others_run_is_written_all_the_same(tmp_path):
    from conftest import write_gguf

    keys = {"general.architecture": "gemma", "gemma.context_length": 8}
    path = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": np.ones((4, 32))}, keys)
    report = convert_checkpoint(path, type="q8_0")
    assert (tmp_path / "m-q8_0.gguf").exists() and report.proof.nats is None and report.proof.left_out


def test_what_memory_does_not_allow_in_f32_is_compared_in_a_narrower_type(tmp_path, monkeypatch):
    path = letters(tmp_path)
    weights, largest = sum(w.numel() for w in checkpoint()["model"].values()), 64 * 256
    for per_weight, kind, name in ((2.2, "f16", "float16"), (1.5, "q8_0", "q8_0")):
        monkeypatch.setattr(proof, "MEMORY", int(per_weight * weights) - 8 * largest)
        report = convert_checkpoint(path, type="f32")
        assert report.proof.tried_in == report.proof.type == kind
        text = str(report)
        assert f"nats per token in {kind}, each at" in text and f"bits per byte in {kind}\n" in text
        assert f"rounding costs, beside {name}:" in text and "the loss of what was written: the file is large" in text
        assert {"q4_0", "q4_k_m"} & {c.type for c in report.proof.costs} and not any(
            c.is_written for c in report.proof.costs
        )
        (cost,) = (c for c in convert_checkpoint(path, type="q4_0").proof.costs if c.is_written)
        assert cost.type == "q4_0" and cost.nats != 0


def test_a_model_that_predicts_a_text_worse_than_its_frequencies_is_not_proved(tmp_path):
    path = letters(tmp_path)
    assert "NOT PROVED" in str(convert_checkpoint(path))  # its weights are drawn
    report = convert_checkpoint(EXAMPLE, tmp_path / "out.gguf", text=EXAMPLE.with_name("input.txt"))
    assert report.proof.nats < report.proof.nats_of_frequencies and "NOT PROVED" not in str(report)


def test_sizes_of_other_types_are_those_of_their_files(tmp_path):
    path = letters(tmp_path)
    costs = {c.type: c.n_bytes for c in convert_checkpoint(path, type="q8_0").proof.costs}
    assert "q4_0" in costs
    for type in costs:
        size = convert_checkpoint(path, tmp_path / f"{type}.gguf", type=type, proof=False).n_bytes
        assert abs(costs[type] - size) < 2000, type


def test_a_closed_terminal_leaves_nothing_behind(tmp_path):
    import signal
    import subprocess
    import sys
    import time

    path = letters(tmp_path)
    for number in (signal.SIGTERM, signal.SIGHUP):
        for delay in (0.3, 0.6):
            run = subprocess.Popen([sys.executable, "-m", "pygpt", "convert", str(path)], stdout=subprocess.DEVNULL)
            time.sleep(delay)
            run.send_signal(number)
            run.wait(timeout=30)
            left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".pygpt-") or p.suffix == ".part"]
            assert not left and run.returncode in (0, 128 + number, -number)
