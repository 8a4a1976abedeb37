"""What Python code may rely on: pygpt.Model, Session, and the functions behind them."""

import gc
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf

import pygpt
from pygpt import _lib
from pygpt.generate import StopFilter


def test_importing_pygpt_imports_nothing_heavy():
    heavy = ["numpy", "torch", "tokenizers", "gguf", "tqdm", "pygpt._core"]
    code = f"import pygpt, sys; assert not set({heavy}) & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_generating_characters_imports_neither_numpy_nor_tokenizers(random_model):
    code = (
        f"import pygpt, sys; m = pygpt.Model({str(random_model())!r}); m.complete('a', 3); "
        "assert not {'numpy', 'torch', 'tokenizers', 'gguf', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_is_there_and_others_are_not():
    for name in pygpt.__all__:
        assert getattr(pygpt, name)
    assert sorted(pygpt.__all__) == dir(pygpt)
    with pytest.raises(AttributeError):
        pygpt.nothing  # noqa: B018


# ---- types and files ----


@pytest.mark.parametrize("name", list(_lib.types()))
def test_quantizing_and_back_keeps_shapes_and_nearly_the_values(name):
    kind = _lib.types()[name]
    weights = np.random.default_rng(3).normal(size=(3, 5, 512)).astype(np.float32)
    rows = _lib.quantize(weights, name)
    assert rows.shape == (3, 5, 512 // kind.block * kind.bytes) and rows.dtype == np.uint8
    error = np.abs(_lib.dequantize(rows, name) - weights).max()
    assert error <= {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2}.get(name, 1.2)  # test_types.py: closer


def test_quantizing_rows_of_a_width_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="multiple of 32"):
        _lib.quantize(np.zeros((2, 33), np.float32), "q8_0")
    with pytest.raises(pygpt.Error, match="choose one of f32"):
        _lib.quantize(np.zeros((2, 32), np.float32), "q9_9")
    with pytest.raises(ValueError, match="multiple of 34"):
        _lib.dequantize(np.zeros((2, 33), np.uint8), "q8_0")


def test_quantizing_nothing_gives_nothing():
    assert _lib.quantize(np.zeros((0, 32), np.float32), "q8_0").shape == (0, 34)


def test_a_file_gives_its_keys_and_tensors_as_python_values(tmp_path):
    keys = {"a.int": 7, "a.float": 0.5, "a.bool": True, "a.text": "héllo", "a.ints": [1, -2], "a.texts": ["x", ""]}
    matrix = np.arange(64, dtype=np.float32).reshape(2, 32)
    path = write_gguf(tmp_path / "k.gguf", {"m": matrix, "v": np.ones(3)}, keys)
    with _lib.File(path) as file:
        assert {name: file.keys[name] for name in keys} == keys
        assert "nothing" not in file.keys and file.keys.get("nothing") is None
        assert file.tensors["m"] == ("m", "f32", (2, 32), 256)
        assert np.array_equal(file.data("m").view(np.float32), matrix)
        assert file.bytes == path.stat().st_size
    with pytest.raises(ValueError, match="closed"):
        file.data("m")


def test_a_file_that_is_missing_is_a_file_not_found_error(tmp_path):
    for opened in (_lib.File, pygpt.Model, pygpt.Tokenizer.from_file):
        with pytest.raises(FileNotFoundError) as error:
            opened(tmp_path / "absent.gguf")
        assert isinstance(error.value, pygpt.Error) and "absent.gguf" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello, world" * 9, bytes(64), b"GGUF\x03" + b"\xff" * 60])
def test_a_file_that_is_no_gguf_is_a_pygpt_error(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    for opened in (_lib.File, pygpt.Model):
        with pytest.raises(pygpt.Error, match="bad.gguf"):
            opened(tmp_path / "bad.gguf")


def test_a_model_of_an_unknown_architecture_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"v": np.ones(3)}, {"general.architecture": "mamba9"})
    with pytest.raises(pygpt.Error, match="mamba9"):
        pygpt.Model(path)


def test_every_truncation_of_a_model_is_a_pygpt_error(random_model, tmp_path):
    data = random_model().read_bytes()
    for n in range(0, len(data), 997):
        (tmp_path / "cut.gguf").write_bytes(data[:n])
        with pytest.raises(pygpt.Error):
            pygpt.Model(tmp_path / "cut.gguf")


# ---- the machine ----


def test_the_machine_tells_its_instruction_sets_and_limits():
    isas = _lib.isas()
    assert isas["scalar"] and isas[_lib.isa_current()]
    assert _lib.cpu_count() >= 1 and _lib.memory()[0] > 0
    assert _lib.measure_read(1, 0.02) > 1e8 and _lib.measure_mac(1, 0.02) > 1e6


# ---- logits and sessions ----


def test_logits_have_a_row_per_id_and_do_not_depend_on_what_follows(random_model):
    with pygpt.Model(random_model()) as model:
        all_rows = model.logits([3, 1, 4, 1, 5])
        assert all_rows.shape == (5, model.info.n_vocab) and all_rows.dtype == np.float32
        np.testing.assert_allclose(model.logits([3, 1, 4]), all_rows[:3], rtol=1e-4, atol=1e-4)
        assert model.logits([]).shape == (0, model.info.n_vocab)


@pytest.mark.parametrize("ids", [np.array([3, 1]), (3, 1), iter([3, 1]), range(3, 0, -2), np.array([3, 1], np.uint8)])
def test_ids_are_any_sequence_of_integers(random_model, ids):
    with pygpt.Model(random_model()) as model:
        assert np.array_equal(model.logits(ids), model.logits([3, 1]))


@pytest.mark.parametrize("ids", [[-1], [10**6], [2**40], ["a"], [0.5], 7, None, [[1, 2]]])
def test_ids_that_cannot_be_are_a_value_error(random_model, ids):
    with pygpt.Model(random_model()) as model, pytest.raises(ValueError) as error:
        model.logits(ids)
    assert isinstance(error.value, pygpt.Error)


def test_more_ids_than_the_context_are_an_error_with_both_numbers(random_model):
    with pygpt.Model(random_model(n_ctx=16)) as model:
        for call in (model.logits, model.complete, model.session().feed):
            with pytest.raises(ValueError, match="17.*16"):
                call([1] * 17)


def test_a_session_feeds_rewinds_and_forks(random_model):
    with pygpt.Model(random_model()) as model, model.session() as s:
        first = s.feed([1, 2, 3])
        assert first.shape == (model.info.n_vocab,) and s.length == 3 and s.n_ctx == 16
        with s.fork() as other:
            assert np.array_equal(other.feed([4]), s.feed([4]))
            other.feed([5])
            assert (other.length, s.length) == (5, 4)
        s.rewind(2)
        np.testing.assert_allclose(s.feed([3]), first, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError):
            s.rewind(9)
        with pytest.raises(ValueError, match="at least one"):
            s.feed([])


def test_a_failed_feed_appends_nothing(random_model):
    with pygpt.Model(random_model(n_ctx=300)) as model, model.session() as s:
        s.feed([1, 2])
        with pytest.raises(pygpt.Error):
            s.feed([1] * 200 + [9999])
        assert s.length == 2


def test_long_prompts_fed_in_pieces_give_the_same_logits(random_model):
    with pygpt.Model(random_model(n_ctx=300)) as model, model.session() as s:
        ids = [i % 27 for i in range(290)]
        whole = model.logits(ids)
        for i in range(0, 290, 29):
            last = s.feed(ids[i : i + 29])
            np.testing.assert_allclose(last, whole[i + 28], rtol=1e-3, atol=1e-3)


def test_what_is_closed_says_so(random_model):
    model = pygpt.Model(random_model())
    session = model.session()
    session.close()
    for call in (lambda: session.feed([1]), lambda: session.length, lambda: session.rewind(0), session.fork):
        with pytest.raises(ValueError, match="closed"):
            call()
    model.close()
    model.close()
    for call in (model.session, lambda: model.logits([1]), lambda: model.complete("a")):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_session_outlives_its_closed_model(random_model):
    model = pygpt.Model(random_model())
    expected = model.logits([1, 2, 3])[-1]
    session, text = model.session(), model.generate("a", 40, seed=1)
    first = next(text)
    model.close()
    del model
    gc.collect()
    np.testing.assert_allclose(session.feed([1, 2, 3]), expected, rtol=1e-4, atol=1e-4)
    assert len(first + "".join(text)) == 40


def test_a_shared_model_gives_every_thread_its_own_text(random_model):
    with pygpt.Model(random_model(), threads=1) as model:
        expected = [model.complete("a", 60, seed=i) for i in range(6)]
        found = [""] * 6

        def work(i: int) -> None:
            found[i] = model.complete("a", 60, seed=i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected


def test_a_session_used_from_two_threads_takes_turns(random_model):
    with pygpt.Model(random_model(n_ctx=400), threads=1) as model, model.session() as s:
        threads = [threading.Thread(target=lambda: [s.feed([1]) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert s.length == 400


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_number_of_threads_that_cannot_be_is_a_value_error(random_model, threads):
    with pytest.raises(ValueError, match="1 to 256"):
        pygpt.Model(random_model(), threads=threads)


# ---- text ----


def test_the_same_seed_gives_the_same_text_with_any_number_of_threads(random_model):
    texts = set()
    for threads in (1, 2, 3):
        with pygpt.Model(random_model(), threads=threads) as model:
            texts.add(model.complete("abc", 100, temperature=1.5, seed=7))
    assert len(texts) == 1


def test_seeds_and_streams_differ(random_model):
    with pygpt.Model(random_model()) as model:
        texts = {model.complete("a", 50, temperature=2.0, seed=s, stream=t) for s in (1, 2) for t in (0, 1)}
        drawn = model.generate("a", 50, temperature=2.0)
        assert len(texts) == 4 and "".join(drawn) == model.complete("a", 50, temperature=2.0, seed=drawn.seed)


def test_pieces_come_one_by_one_and_together_are_the_text(parrot):
    with pygpt.Model(parrot("abcde")) as model:
        text = model.generate("a", 12)
        first = next(text)
        assert first == "b" and first + "".join(text) == "bcdeabcdeabc"
        assert (text.n_prompt, text.n_generated, text.finish) == (1, 12, "length")
        assert model.complete("a", 12) == "bcdeabcdeabc"


def test_a_text_without_a_limit_goes_on(parrot):
    with pygpt.Model(parrot("abcde", n_ctx=8)) as model:
        text = model.generate("a", None)
        assert "".join(itertools.islice(text, 3)).startswith("bcdeabcde"[:3])
        text.close()
        assert list(text) == []


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("e", "bcd"),
        ("dea", "bc"),
        (["zz", "ab"], "bcde"),
        (["cde", "bcd"], ""),
        ("b", ""),
        ("xyz", "bcdeabcdea"),
        ("ac", "bcdeabcdea"),
        ([], "bcdeabcdea"),
    ],
)
def test_stop_texts_end_the_text_across_pieces_and_are_left_out(parrot, stop, expected):
    with pygpt.Model(parrot("abcde")) as model:
        text = model.generate("a", 10, stop=stop)
        assert "".join(text) == expected
        assert text.finish == ("length" if len(expected) == 10 else "stop")


def test_a_stop_text_is_found_wherever_pieces_begin_and_end():
    for cuts in itertools.product([0, 1], repeat=7):
        text, pieces = "aabaabab", [""]
        for c, cut in zip(text, (*cuts, 0), strict=True):
            pieces[-1] += c
            pieces += [""] * cut
        stops = StopFilter(["aabab", "zz"])
        out = ""
        for piece in pieces:
            out += stops.feed(piece)
            if stops.hit:
                break
        assert out == "aab" and stops.hit


def test_what_looked_like_a_stop_text_is_given_out_in_the_end():
    stops = StopFilter(["abc"])
    assert [stops.feed(c) for c in "xab"] == ["x", "", ""] and stops.finish() == "ab"


def test_tokens_that_split_a_character_still_give_whole_characters(byte_parrot):
    with pygpt.Model(byte_parrot("xé😀".encode())) as model:
        pieces = list(model.generate("x", 50))
        assert "".join(pieces) == "é😀"
        for n, expected in [(1, "\ufffd"), (2, "é"), (3, "é\ufffd"), (5, "é\ufffd"), (6, "é😀")]:
            assert model.complete("x", n) == expected


def test_bytes_that_are_no_text_become_replacement_characters(byte_parrot):
    with pygpt.Model(byte_parrot(b"x\xff\xfe\xc3y")) as model:
        assert model.complete("x", 50) == "\ufffd\ufffd\ufffdy"


def test_the_end_of_text_token_ends_the_text_and_is_not_shown(byte_parrot):
    with pygpt.Model(byte_parrot(b"xyz")) as model:
        text = model.generate("x", 50)
        assert "".join(text) == "yz" and text.finish == "end" and text.n_generated == 2


def test_an_empty_prompt_starts_from_the_end_of_the_text_before(byte_parrot):
    with pygpt.Model(byte_parrot(b"xyz")) as model:
        assert model.complete("", 50) == model.complete([], 50) == "xyz"


def test_an_empty_prompt_of_a_character_model_starts_from_a_newline(parrot):
    with pygpt.Model(parrot("ab\ncd")) as model:
        assert model.complete("", 3) == "cda"


@pytest.mark.parametrize("on_full", ["exact", "jump"])
def test_texts_go_on_past_the_context(parrot, on_full):
    with pygpt.Model(parrot("abcde", n_ctx=8)) as model:
        assert model.complete("abcdeabc", 30, on_full=on_full) == ("deabc" * 6)


def test_exact_reads_the_last_window_anew_for_every_token(random_model):
    with pygpt.Model(random_model(n_ctx=16, type="f32")) as model:
        ids = model.tokenizer.encode("the quick")
        for _ in range(30):
            ids.append(int(model.logits(ids[-16:])[-1].argmax()))
        expected = model.tokenizer.decode(ids[9:])
        assert model.complete("the quick", 30, temperature=0, on_full="exact") == expected


def test_stop_ends_when_the_context_is_full(parrot):
    with pygpt.Model(parrot("abcde", n_ctx=8)) as model:
        text = model.generate("abc", 100, on_full="stop")
        assert "".join(text) == "deabcd" and text.finish == "context"


def test_padding_is_never_chosen(random_model):
    with pygpt.Model(random_model(characters="abc", n_vocab=64)) as model:
        assert set(model.complete("a", 300, temperature=100.0, top_k=0, seed=1)) == set("abc")


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repeat_penalty": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"on_full": "slide"},
        {"max_tokens": 0},
        {"max_tokens": -3},
        {"unknown": "guess"},
    ],
)
def test_settings_that_cannot_be_are_value_errors_at_once(random_model, setting):
    with pygpt.Model(random_model()) as model, pytest.raises(ValueError) as error:
        model.generate("a", **setting)
    assert isinstance(error.value, pygpt.Error)


def test_a_misspelled_setting_is_a_type_error(random_model):
    with pygpt.Model(random_model()) as model, pytest.raises(TypeError):
        model.generate("a", temprature=1)


def test_the_settings_that_are_off_change_nothing(random_model):
    with pygpt.Model(random_model()) as model:
        off = model.complete("a", 40, seed=1, top_k=0)
        assert off == model.complete("a", 40, seed=1, top_k=None, top_p=1, min_p=0, repeat_penalty=1)


def test_info_tells_the_shapes(random_model):
    with pygpt.Model(random_model(), threads=2) as model:
        i = model.info
        assert (i.architecture, i.n_vocab, i.n_ctx, i.n_layer, i.n_head, i.n_embd) == ("gpt2", 28, 16, 2, 2, 64)
        assert i.n_threads == 2 and i.n_ff == 256 and i.n_params > 100_000 and i.bytes_per_token > 100_000


def test_a_model_without_vocabulary_still_has_logits(random_model):
    with pygpt.Model(random_model(n_vocab=32, keys={})) as model:
        assert model.logits([1, 2]).shape == (2, 32)
        with pytest.raises(pygpt.Error, match="no vocabulary"):
            model.complete("a")


def test_perplexity_predicts_every_token_but_the_first_once(random_model):
    from pygpt.measure import perplexity

    with pygpt.Model(random_model(n_ctx=16)) as model:
        text = "the quick brown fox jumps over the lazy dog"
        ids, nats = model.tokenizer.encode(text), 0.0
        for begin in range(0, len(ids) - 1, 16):
            targets = ids[begin + 1 : begin + 17]
            logits = model.logits(ids[begin : begin + len(targets)]).astype(np.float64)
            nats += sum(np.log(np.exp(row).sum()) - row[t] for row, t in zip(logits, targets, strict=True))
        found = perplexity(model, text)
        assert (found.n_tokens, found.n_bytes, found.windows) == (len(ids) - 1, len(text) - 1, 3)
        assert found.nats == pytest.approx(nats, rel=1e-4)
        assert perplexity(model, text, windows=1).n_tokens == 16
        with pytest.raises(ValueError, match="at least 2"):
            perplexity(model, "a")


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", gpt2_tensors(3, 16, 32, 1, None), gpt2_keys(16, 32, 1) | character_keys("abcd")
    )
    with pygpt.Model(path) as model, pytest.raises(pygpt.Error, match="4 entries.*3 ids"):
        model.complete("a", 1)


def test_a_character_with_two_ids_is_refused(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", gpt2_tensors(3, 16, 32, 1, None), gpt2_keys(16, 32, 1) | character_keys("aab")
    )
    with pygpt.Model(path) as model, pytest.raises(pygpt.Error, match="twice"):
        model.complete("a", 1)


@pytest.mark.parametrize("prompt", [b"ab", None, 5, [1.5]])
def test_a_prompt_that_is_neither_text_nor_ids_is_an_error(random_model, prompt):
    with pygpt.Model(random_model()) as model, pytest.raises(pygpt.Error, match="integers"):
        model.complete(prompt, 1)


def test_far_too_many_ids_are_refused_before_memory_is_asked_for(random_model):
    with pygpt.Model(random_model()) as model, pytest.raises(pygpt.Error, match="4000000.*16"):
        model.logits([1] * 4_000_000)


def test_a_session_forks_after_its_model_was_closed(random_model):
    model = pygpt.Model(random_model())
    session = model.session()
    session.feed([1, 2])
    model.close()
    assert session.fork().length == 2


def test_a_text_that_is_closed_has_ended(random_model):
    with pygpt.Model(random_model()) as model:
        text = model.generate("a", 50, seed=1)
        next(text)
        text.close()
        assert list(text) == [] and text.finish == "closed"


# ---- generating in a session


def greedy():
    from pygpt.model import Sampling

    return Sampling.checked(temperature=0)


def test_a_session_goes_on_from_what_it_holds(random_model):
    """The same text in one go, and in turns with something between."""
    with pygpt.Model(random_model()) as model:
        whole = [id for ids in model.generate_ids([1, 2, 3], 8, greedy()) for id in ids]
        with model.session() as s:
            s.feed([1, 2])
            first = [id for ids in s.generate([3], 4, greedy()) for id in ids]
            assert first == whole[:4]
            assert s.ids in ([1, 2, 3, *first], [1, 2, 3, *first[:-1]]) and s.length == len(s.ids)
            s.rewind(3)
            assert s.ids == [1, 2, 3]
            again = [id for ids in s.generate(first, 4, greedy()) for id in ids]
            assert first + again == whole


def test_a_closed_stream_leaves_the_session_usable(random_model):
    with pygpt.Model(random_model()) as model, model.session() as s:
        stream = s.generate([1], None, greedy())
        next(stream)
        stream.close()
        held = s.ids
        assert held[0] == 1 and len(held) >= 1
        s.rewind(1)
        assert np.array_equal(s.feed([2]), model.logits([1, 2])[-1])


def test_the_repeat_penalty_knows_what_a_session_held_before(random_model):
    """The history is the sequence's, not the prompt's alone."""
    from pygpt.model import Sampling

    sampling = Sampling.checked(temperature=0, repeat_penalty=1000.0)
    with pygpt.Model(random_model()) as model:
        whole = [id for ids in model.generate_ids([1, 2, 3], 6, sampling) for id in ids]
        with model.session() as s:
            s.feed([1, 2])
            assert [id for ids in s.generate([3], 6, sampling) for id in ids] == whole


def test_a_session_refuses_what_does_not_fit_and_an_empty_start(random_model):
    with pygpt.Model(random_model(n_ctx=16)) as model, model.session() as s:
        s.feed([1] * 10)
        with pytest.raises(pygpt.Error, match="7 tokens after 10 do not fit into a context of 16"):
            s.generate([1] * 7, 1, greedy())
        with pytest.raises(pygpt.Error, match="at least one id"):
            s.generate([], 1, greedy())
        assert s.length == 10


def test_a_session_in_which_a_text_grows_is_not_touched(random_model):
    with pygpt.Model(random_model()) as model, model.session() as s:
        stream = s.generate([1], 4, greedy())
        for call in (
            lambda: s.feed([2]),
            lambda: s.rewind(0),
            lambda: s.length,
            s.fork,
            lambda: s.generate([1], 1, greedy()),
        ):
            with pytest.raises(pygpt.Error, match="a text is being generated in this session"):
                call()
        assert len([id for ids in stream for id in ids]) == 4
        s.rewind(0)
        s.generate([1], None, greedy())  # forgotten: nobody will read it
        assert s.length == 0


def test_forks_know_their_tokens(random_model):
    with pygpt.Model(random_model()) as model, model.session() as s:
        s.feed([1, 2, 3])
        with s.fork() as other:
            other.feed([4])
            assert s.ids == [1, 2, 3] and other.ids == [1, 2, 3, 4]


def test_bytes_are_a_vocabulary(random_model):
    keys = {"tokenizer.ggml.model": "none", "pygpt.tokenizer.model": "byte"}
    with pygpt.Model(random_model(n_vocab=259, keys=keys)) as model:
        t = model.tokenizer
        assert t.encode("é\n") == [0xC3, 0xA9, 0x0A] and t.decode([0xC3, 0xA9, 0x0A]) == "é\n"
        assert t.banned_ids(259) == [256, 257, 258] and t.kind == "byte"
        with pytest.raises(pygpt.Error, match="U\\+D800"):
            t.encode("a\ud800")
        assert t.encode("a\ud800", unknown="skip") == [97]
        assert isinstance(model.complete("a", 5, seed=1), str)
