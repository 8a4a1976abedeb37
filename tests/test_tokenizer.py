"""Text to ids and back, for every kind of vocabulary."""

import re

import numpy as np
import pytest
from conftest import bpe_keys, character_keys, shared, write_gguf

import pygpt
from pygpt._lib import BadArgument, BadFormat, Unsupported
from pygpt.tokenizer import BYTE_OF, USER_DEFINED, Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def test_gpt2_gives_the_ids_that_llama_cpp_expects():
    tokenizer = pygpt.Tokenizer.from_file(shared("vocab/gpt-2.gguf"))
    texts = shared("vocab/gpt-2.inp").read_bytes().decode().split(SEPARATOR)
    expected = [list(map(int, line.split())) for line in shared("vocab/gpt-2.out").read_text().splitlines()]
    assert len(texts) >= len(expected) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text


def test_gpt2_treats_spelled_out_control_tokens_as_plain_text():
    tokenizer = pygpt.Tokenizer.from_file(shared("vocab/gpt-2.gguf"))
    ids = tokenizer.encode("<|endoftext|>")
    assert 50256 not in ids and tokenizer.decode(ids) == "<|endoftext|>"
    assert tokenizer.start_ids() == [50256] and tokenizer.stop_ids() == [50256]
    assert tokenizer.banned_ids(50304) == list(range(50257, 50304))


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2"])
def test_a_vocabulary_of_another_kind_is_named(name):
    with pytest.raises(Unsupported, match="'llama-bpe'|'llama'|'qwen2'"):
        pygpt.Tokenizer.from_file(shared(f"vocab/{name}.gguf"))


def test_from_file_reads_a_file_that_holds_only_a_vocabulary(tmp_path):
    tokenizer = Tokenizer.from_file(write_gguf(tmp_path / "v.gguf", {}, character_keys("ab\n")))
    assert tokenizer.kind == "character" and tokenizer.encode("ba\n") == [1, 0, 2]


def test_an_unknown_character_is_named_with_its_position():
    tokenizer = Tokenizer.from_keys(character_keys("ab"))
    with pytest.raises(ValueError, match=re.escape("'é' (U+00E9), character 2 of the text")):
        tokenizer.encode("abé")
    with pytest.raises(pygpt.Error):
        tokenizer.encode("abé")


def test_unknown_characters_are_dropped_when_asked():
    assert Tokenizer.from_keys(character_keys("ab")).encode("aéb😀", unknown="skip") == [0, 1]
    with pytest.raises(BadArgument, match="neither"):
        Tokenizer.from_keys(character_keys("ab")).encode("a", unknown="ignore")


def test_characters_beyond_the_basic_plane_have_ids():
    tokenizer = Tokenizer.from_keys(character_keys("人😀"))
    assert tokenizer.decode(tokenizer.encode("😀人😀")) == "😀人😀"


def test_an_empty_prompt_starts_from_a_newline_or_the_first_character():
    assert Tokenizer.from_keys(character_keys("ab\n")).start_ids() == [2]
    assert Tokenizer.from_keys(character_keys("ab")).start_ids() == [0]


def test_ids_without_text_are_banned():
    assert Tokenizer.from_keys(character_keys(["a", "", "b"])).banned_ids(5) == [1, 3, 4]


def test_an_id_beyond_the_vocabulary_is_an_error():
    for tokenizer in (Tokenizer.from_keys(character_keys("ab")), Tokenizer.from_keys(bpe_keys())):
        for id in (-1, tokenizer.n_vocab):
            with pytest.raises(BadArgument, match="none of them"):
                tokenizer.decode([id])


def test_bpe_merges_and_every_byte_comes_back():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    assert tokenizer.encode("he") == [256]
    text = "héllo wörld 😀 \x00\x7f"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_finds_user_defined_tokens_in_text():
    keys = bpe_keys(["<user>"])
    keys["tokenizer.ggml.token_type"][257] = USER_DEFINED
    tokenizer = Tokenizer.from_keys(keys)
    assert tokenizer.encode("he<user>he") == [256, 257, 256] and tokenizer.decode([257]) == "<user>"


def test_bpe_with_missing_bytes_says_so_instead_of_dropping_them():
    keys = bpe_keys()
    keys["tokenizer.ggml.tokens"][list(BYTE_OF).index("z")] = "[gone]"
    tokenizer = Tokenizer.from_keys(keys)
    with pytest.raises(BadArgument, match="'z'.*character 2"):
        tokenizer.encode("hez")
    assert tokenizer.encode("hezhe", unknown="skip") == [256, 256]


def test_a_lone_surrogate_is_an_unknown_character():
    with pytest.raises(BadArgument, match="U\\+DC80"):
        Tokenizer.from_keys(bpe_keys()).encode("he\udc80")
    assert Tokenizer.from_keys(bpe_keys()).encode("he\udc80", unknown="skip") == [256]


def test_the_start_token_comes_first_where_the_model_wants_one():
    keys = bpe_keys() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 257}
    assert Tokenizer.from_keys(keys).encode("he") == [257, 256]
    assert Tokenizer.from_keys(keys).encode("he", add_special=False) == [256]


def test_a_stream_holds_bytes_back_until_the_character_is_whole():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    stream, ids = tokenizer.stream(), tokenizer.encode("a😀é")
    pieces = [stream.feed([id]) for id in ids]
    assert pieces == ["a", "", "", "", "😀", "", "é"] and stream.finish() == ""


def test_a_stream_ends_an_incomplete_character_with_the_replacement_character():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    stream = tokenizer.stream()
    assert stream.feed(tokenizer.encode("é")[:1]) == "" and stream.finish() == "\ufffd"


def test_a_model_without_vocabulary_says_that_it_speaks_ids():
    tokenizer = Tokenizer.from_keys({})
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1]), tokenizer.start_ids):
        with pytest.raises(BadArgument, match="no vocabulary"):
            call()


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.tokens": 7},
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.token_type": "1"},
        {"tokenizer.ggml.merges": ["x y z", "nospace"]},
        {"tokenizer.ggml.merges": None},
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.bos_token_id": "one"},
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_an_error_with_a_sentence(change):
    keys = bpe_keys() | change
    try:
        assert Tokenizer.from_keys(keys).encode("he") == [256]
    except pygpt.Error as error:
        assert str(error)


def test_an_unknown_kind_is_named():
    with pytest.raises(Unsupported, match="'unigram'"):
        Tokenizer.from_keys({"tokenizer.ggml.model": "unigram"})
    with pytest.raises(BadFormat, match="characters"):
        Tokenizer.from_keys({"pygpt.tokenizer.model": "character"})
    assert np.array(Tokenizer.from_keys(character_keys("ab")).encode("ab")).tolist() == [0, 1]
