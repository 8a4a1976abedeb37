"""Text to ids and back, for every kind of vocabulary. What joins text to tokens is in test_tokenizer_kinds.py."""

import re

import numpy as np
import pytest
from conftest import bpe_keys, character_keys, shared, write_gguf

import pygpt
from pygpt import _lib, byte_pairs
from pygpt._lib import BadArgument, BadFormat, Strings, Unsupported
from pygpt.tokenizer import BYTE_OF, CONTROL, USER_DEFINED, Tokenizer
from pygpt.vocabulary import BYTE, NORMAL, UNKNOWN, UNUSED

SEPARATOR = "\n__ggml_vocab_test__\n"


def llama_keys(pieces=(), byte_fallback=True, **changes):
    """A vocabulary of the kind "llama": <unk> <s> </s>, the bytes, then pieces = [(text, score, kind), ...]."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)] if byte_fallback else []
    rows += [("\u2581", -3.0, NORMAL), ("a", -4.0, NORMAL), ("b", -5.0, NORMAL), ("ab", -1.0, NORMAL), *pieces]
    tokens, scores, kinds = map(list, zip(*rows, strict=True))
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
    }
    return keys | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


# ---- real vocabularies


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "qwen2"])
def test_the_ids_are_those_that_llama_cpp_expects(name):
    tokenizer = pygpt.Tokenizer.from_file(shared(f"vocab/{name}.gguf"))
    texts = shared(f"vocab/{name}.inp").read_bytes().decode().split(SEPARATOR)
    expected = [list(map(int, line.split())) for line in shared(f"vocab/{name}.out").read_text().splitlines()]
    assert len(texts) >= len(expected) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text


def test_gpt2_treats_spelled_out_control_tokens_as_plain_text():
    tokenizer = pygpt.Tokenizer.from_file(shared("vocab/gpt-2.gguf"))
    ids = tokenizer.encode("<|endoftext|>")
    assert 50256 not in ids and tokenizer.decode(ids) == "<|endoftext|>"
    assert tokenizer.encode("a<|endoftext|>", parse_special=True) == [64, 50256]
    assert tokenizer.start_ids() == [50256] and tokenizer.stop_ids() == [50256]
    assert tokenizer.banned_ids(50304) == list(range(50257, 50304))


def test_start_and_stop_tokens_of_real_vocabularies():
    llama3 = pygpt.Tokenizer.from_file(shared("vocab/llama-bpe.gguf"))  # by its split rule, no key says so
    assert llama3.encode("Hello") == [128000, 9906] and llama3.stop_ids() == [128001, 128009]
    llama2 = pygpt.Tokenizer.from_file(shared("vocab/llama-spm.gguf"))
    assert llama2.encode("Hello") == [1, 15043] and llama2.stop_ids() == [2]
    qwen2 = pygpt.Tokenizer.from_file(shared("vocab/qwen2.gguf"))
    assert qwen2.encode("Hello") == [9707] and qwen2.stop_ids() == [151643, 151645]
    chat = "<|im_start|>user\nHi<|im_end|>\n"
    assert qwen2.encode(chat, parse_special=True) == [151644, 872, 198, 13048, 151645, 198]
    assert qwen2.decode(qwen2.encode(chat)) == chat == qwen2.decode(qwen2.encode(chat, parse_special=True))


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_a_short_prompt_is_encoded_without_dicts_of_the_whole_vocabulary(name):
    tokenizer = pygpt.Tokenizer.from_file(shared(f"vocab/{name}.gguf"))
    prompt = "The quick brown fox jumps over the lazy dog."
    first = tokenizer.encode(prompt)
    assert "ids" not in tokenizer._vocabulary.__dict__ and tokenizer._encoder._ranks[0] <= 1 << 16
    tokenizer.encode(" ".join(shared(f"vocab/{name}.inp").read_text().split()))
    assert "ids" in tokenizer._vocabulary.__dict__ and tokenizer.encode(prompt) == first
    tokenizer._encoder._words.clear()
    assert tokenizer.encode(prompt) == first


# ---- characters


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


def test_a_character_may_end_texts():
    keys = character_keys("ab.") | {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_keys(keys)
    assert tokenizer.stop_ids() == [2] and tokenizer.encode("ab") == [0, 1, 2]
    with pytest.raises(BadFormat, match="eos_token_id: expected an id below 3, .* found 3"):
        Tokenizer.from_keys(keys | {"tokenizer.ggml.eos_token_id": 3})


def test_ids_without_text_are_banned():
    assert Tokenizer.from_keys(character_keys(["a", "", "b"])).banned_ids(5) == [1, 3, 4]


def test_a_model_without_vocabulary_says_that_it_speaks_ids():
    tokenizer = Tokenizer.from_keys({"tokenizer.ggml.eos_token_id": 5})
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1]), tokenizer.start_ids):
        with pytest.raises(BadArgument, match="no vocabulary"):
            call()
    assert tokenizer.stop_ids() == [] == tokenizer.banned_ids(9)


# ---- byte-level BPE


def test_bpe_merges_and_every_byte_comes_back():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    assert tokenizer.encode("he") == [256]
    text = "héllo wörld 😀 \x00\x7f"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_with_missing_bytes_says_so_instead_of_dropping_them():
    keys = bpe_keys()
    keys["tokenizer.ggml.tokens"][list(BYTE_OF).index("z")] = "[gone]"
    tokenizer = Tokenizer.from_keys(keys)
    with pytest.raises(BadArgument, match="'z'.*character 2"):
        tokenizer.encode("hez")
    with pytest.raises(BadArgument, match="'z'.*character 15"):
        tokenizer.encode("<|endoftext|>hez", parse_special=True)
    assert tokenizer.encode("hezhe", unknown="skip") == [256, 256]


@pytest.mark.parametrize("keys", [bpe_keys(), llama_keys()], ids=["bpe", "llama"])
def test_a_lone_surrogate_is_an_unknown_character(keys):
    tokenizer = Tokenizer.from_keys(keys)
    with pytest.raises(BadArgument, match="U\\+DC80.*character 2"):
        tokenizer.encode("he\udc80")
    assert tokenizer.encode("he\udc80he", unknown="skip") == tokenizer.encode("hehe")


# ---- the kind "llama"


def test_llama_joins_by_score_and_falls_back_to_bytes():
    tokenizer = Tokenizer.from_keys(llama_keys([("ba", -0.5, NORMAL), ("\u2581ab", -2.0, NORMAL)]))
    names = tokenizer._vocabulary.tokens
    spelled = lambda text: [names[id].decode() for id in tokenizer.encode(text, add_special=False)]  # noqa: E731
    assert spelled("ab") == ["\u2581ab"] and spelled("aba") == ["\u2581", "a", "ba"]
    assert spelled("é") == ["\u2581", "<0xC3>", "<0xA9>"] and spelled("") == []
    assert tokenizer.decode(tokenizer.encode("abé  ba ", add_special=False)) == "abé  ba "


def test_llama_without_a_space_before_texts():
    tokenizer = Tokenizer.from_keys(llama_keys(add_space_prefix=False))
    assert tokenizer.encode("ab", add_special=False) == [262] and tokenizer.decode([259, 262]) == " ab"


def test_llama_without_bytes_uses_the_unknown_token_or_says_what_it_lacks():
    tokenizer = Tokenizer.from_keys(llama_keys(byte_fallback=False))
    assert tokenizer.encode("aéèb", add_special=False) == [3, 4, 0, 5]
    keys = llama_keys(byte_fallback=False)
    keys["tokenizer.ggml.token_type"][0] = CONTROL
    with pytest.raises(BadArgument, match="'é' .*character 1"):
        Tokenizer.from_keys(keys).encode("aéb")
    assert Tokenizer.from_keys(keys).encode("aéb", add_special=False, unknown="skip") == [3, 6]


def test_bytes_that_are_spelled_wrong_mean_only_themselves():
    odd = ["<0x-1>", "<0xZZ>", "<0x100>", "<0x4>", "<0x41>x"]
    tokenizer = Tokenizer.from_keys(llama_keys([(text, -9.0, BYTE) for text in odd]))
    assert [tokenizer.token_bytes(263 + i) for i in range(len(odd))] == [text.encode() for text in odd]
    assert tokenizer.token_bytes(3 + 0x41) == b"A"


def test_text_cannot_spell_a_byte():
    pieces = [(text, -9.0 + i, NORMAL) for i, text in enumerate(("<0", "x4", "1>", "<0x4"))]
    tokenizer = Tokenizer.from_keys(llama_keys(pieces))
    ids = tokenizer.encode("<0x41>", add_special=False)
    assert 3 + 0x41 not in ids and tokenizer.decode(ids) == "<0x41>"


def test_bytes_are_found_where_the_file_has_no_kinds():
    keys = llama_keys()
    del keys["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_keys(keys)
    assert tokenizer.decode(tokenizer.encode("aé")) == "aé"


def test_the_space_before_texts_is_taken_off_again_behind_special_tokens():
    tokenizer = Tokenizer.from_keys(llama_keys([("<user>", 0.0, USER_DEFINED)]))
    for text in ("ab", " ab", "  ", "<s>ab</s>", "<s> ab<user>a <user>", "<user><user>b"):
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        assert tokenizer.decode(ids) == text, ids
    assert tokenizer.encode("a<user>b", add_special=False) == [259, 260, 263, 259, 261]


def test_a_stream_keeps_the_space_before_a_word():
    tokenizer = Tokenizer.from_keys(llama_keys([("\u2581ab", -2.0, NORMAL)]))
    stream = tokenizer.stream()
    assert [stream.feed([263]), stream.feed([263])] == [" ab", " ab"] and tokenizer.decode([263, 263]) == "ab ab"


# ---- special tokens

KINDS = {"bpe": (bpe_keys(["<user>"]), 256, 257), "llama": (llama_keys([("<user>", 0.0, USER_DEFINED)]), 262, 263)}


@pytest.mark.parametrize("kind", KINDS)
def test_user_defined_tokens_are_found_in_any_text(kind):
    keys, _, user = KINDS[kind]
    keys["tokenizer.ggml.token_type"][user] = USER_DEFINED
    tokenizer = Tokenizer.from_keys(keys)
    assert tokenizer.encode("<user>", add_special=False) == [user] and tokenizer.decode([user]) == "<user>"
    assert tokenizer.encode("a<user>", add_special=False)[-1] == user


def test_control_tokens_become_ids_only_when_asked():
    keys = bpe_keys(["<|start|>"])
    keys["tokenizer.ggml.token_type"][257] = CONTROL
    tokenizer = Tokenizer.from_keys(keys)
    text = "<|start|>he<|endoftext|>"
    assert not {257, 258} & set(tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, parse_special=True) == [257, 256, 258]


def test_no_word_becomes_a_control_token():
    keys = bpe_keys() | {"tokenizer.ggml.pre": "llama-bpe"}
    for kind in (CONTROL, UNKNOWN, UNUSED):
        keys["tokenizer.ggml.token_type"][256] = kind  # "he", which a merge and the rule for whole words lead to
        assert Tokenizer.from_keys(keys).encode("he", add_special=False) == [71, 68]


def test_of_special_tokens_at_the_same_place_the_longest_is_taken():
    keys = bpe_keys(["<a>", "<a><b>", "<b>"])
    keys["tokenizer.ggml.token_type"][257:260] = [USER_DEFINED] * 3
    assert Tokenizer.from_keys(keys).encode("<a><b><b><a>") == [258, 259, 257]


def test_the_start_and_the_end_token_come_where_the_model_wants_them():
    keys = bpe_keys() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 257}
    assert Tokenizer.from_keys(keys).encode("he") == [257, 256]
    assert Tokenizer.from_keys(keys).encode("he", add_special=False) == [256]
    assert Tokenizer.from_keys(keys | {"tokenizer.ggml.add_eos_token": True}).encode("he") == [257, 256, 257]


def test_a_text_that_spells_the_start_token_out_does_not_get_it_twice():
    tokenizer = Tokenizer.from_keys(llama_keys(add_eos_token=True))
    assert tokenizer.encode("<s>ab</s>", parse_special=True) == tokenizer.encode("ab") == [1, 259, 262, 2]
    assert len(tokenizer.encode("<s>ab")) > 4 and tokenizer.encode("") == [1, 2]


def test_start_tokens_where_the_file_does_not_say():
    assert Tokenizer.from_keys(llama_keys()).encode("ab") == [1, 259, 262]
    assert Tokenizer.from_keys(llama_keys(add_bos_token=False)).encode("ab") == [259, 262]
    keys = llama_keys()
    keys["tokenizer.ggml.token_type"][1] = NORMAL  # then 1 is no start token
    assert Tokenizer.from_keys(keys).encode("ab") == [259, 262]
    for pre, wants in {"gpt-2": 0, "qwen2": 0, "smaug-bpe": 0, "llama-bpe": 1, "llama3": 1, "tekken": 1}.items():
        keys = bpe_keys() | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.bos_token_id": 257}
        assert len(Tokenizer.from_keys(keys).encode("he")) == 1 + wants, pre


def test_more_tokens_than_one_may_end_a_text():
    keys = bpe_keys(["<|im_end|>", "<stop>", "<|end|>"])
    keys["tokenizer.ggml.token_type"][257] = CONTROL
    assert Tokenizer.from_keys(keys).stop_ids() == [260, 257]
    assert Tokenizer.from_keys(keys | {"tokenizer.ggml.eot_token_id": 258}).stop_ids() == [260, 258, 257]
    assert Tokenizer.from_keys(keys | {"tokenizer.ggml.eom_token_id": 260}).stop_ids() == [260, 257]
    keys = bpe_keys(["<|end|>", "<|return|>", "<|call|>"])
    keys["tokenizer.ggml.token_type"][257:260] = [CONTROL] * 3
    assert Tokenizer.from_keys(keys).stop_ids() == [260, 258, 259]


def test_an_empty_prompt_starts_from_the_start_token_or_from_the_end_of_a_text():
    assert Tokenizer.from_keys(bpe_keys()).start_ids() == [257]
    assert Tokenizer.from_keys(llama_keys()).start_ids() == [1]
    keys = bpe_keys()
    del keys["tokenizer.ggml.eos_token_id"]
    with pytest.raises(BadArgument, match="the prompt is empty"):
        Tokenizer.from_keys(keys).start_ids()


def test_an_id_beyond_the_vocabulary_is_an_error():
    for keys in (character_keys("ab"), bpe_keys(), llama_keys()):
        tokenizer = Tokenizer.from_keys(keys)
        for id in (-1, tokenizer.n_vocab):
            with pytest.raises(BadArgument, match="none of them"):
                tokenizer.decode([id])


def test_padding_is_banned():
    keys = bpe_keys(["[PAD257]", "[PAD258]"])
    keys["tokenizer.ggml.token_type"][257:259] = [UNUSED] * 2
    assert Tokenizer.from_keys(keys).banned_ids(262) == [257, 258, 260, 261]


# ---- streams


def test_a_stream_holds_bytes_back_until_the_character_is_whole():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    stream, ids = tokenizer.stream(), tokenizer.encode("a😀é")
    pieces = [stream.feed([id]) for id in ids]
    assert pieces == ["a", "", "", "", "😀", "", "é"] and stream.finish() == ""


def test_a_stream_ends_an_incomplete_character_with_the_replacement_character():
    tokenizer = Tokenizer.from_keys(bpe_keys())
    stream = tokenizer.stream()
    assert stream.feed(tokenizer.encode("é")[:1]) == "" and stream.finish() == "\ufffd"


# ---- files that cannot be right


@pytest.mark.parametrize("make", [bpe_keys, llama_keys], ids=["bpe", "llama"])
@pytest.mark.parametrize(
    "name, value",
    [
        ("tokens", None),
        ("tokens", 7),
        ("tokens", []),
        ("tokens", [1, 2]),
        ("tokens", "text"),
        ("token_type", [1]),
        ("token_type", "1"),
        ("token_type", [7] * 300),
        ("token_type", [-1]),
        ("token_type", [1.5]),
        ("eos_token_id", 10**6),
        ("eos_token_id", -1),
        ("bos_token_id", "one"),
        ("bos_token_id", True),
        ("eot_token_id", [1]),
        ("eom_token_id", 2.0),
        ("add_bos_token", 1),
        ("add_eos_token", "yes"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_an_error_with_a_sentence(make, name, value):
    keys = make() | {f"tokenizer.ggml.{name}": value}
    if isinstance(value, list) and name == "token_type" and len(value) == 300:
        keys[f"tokenizer.ggml.{name}"] = value[:1] * len(keys["tokenizer.ggml.tokens"])
    with pytest.raises(BadFormat, match=rf"^tokenizer\.ggml\.{name}: expected .*, found .*; .*convert"):
        Tokenizer.from_keys(keys)


@pytest.mark.parametrize(
    "name, value",
    [
        ("scores", None),
        ("scores", [1.0]),
        ("scores", "high"),
        ("scores", ["high"] * 263),
        ("scores", [float("nan")] * 263),
        ("scores", [float("inf"), *[0.0] * 262]),
        ("unknown_token_id", 1000),
        ("add_space_prefix", 0),
        ("remove_extra_whitespaces", 1),
        ("precompiled_charsmap", [4, 0, 0, 0]),
        ("precompiled_charsmap", "text"),
        ("precompiled_charsmap", [0.5]),
        ("precompiled_charsmap", 5),
    ],
)
def test_the_kind_llama_needs_scores_and_flags_that_make_sense(name, value):
    with pytest.raises(BadFormat, match=rf"^tokenizer\.ggml\.{name}: expected .*, found .*; .*convert"):
        Tokenizer.from_keys(llama_keys() | {f"tokenizer.ggml.{name}": value})


def test_a_start_token_that_is_wanted_must_be_there():
    with pytest.raises(BadFormat, match="bos_token_id: expected an id, because add_bos_token is true, found nothing"):
        Tokenizer.from_keys(bpe_keys() | {"tokenizer.ggml.add_bos_token": True})


@pytest.mark.parametrize(
    "keys, named",
    [(bpe_keys(["he"]), "'he' as 256 and as 257"), (llama_keys([("ab", 0.0, NORMAL)]), "'ab' as 262 and as 263")],
    ids=["bpe", "llama"],
)
def test_a_token_that_occurs_twice_is_named(keys, named):
    tokenizer = Tokenizer.from_keys(keys)
    with pytest.raises(BadFormat, match=f"expected each token once, found {named}"):
        tokenizer.encode("some text")


def test_tokens_without_text_may_be_several():
    tokenizer = Tokenizer.from_keys(bpe_keys(["", ""]))
    assert tokenizer.encode("he") == [256] and tokenizer.decode([257, 256, 258]) == "he"


def test_a_space_before_texts_needs_a_token():
    keys = llama_keys(byte_fallback=False)
    keys["tokenizer.ggml.token_type"][0] = CONTROL
    keys["tokenizer.ggml.tokens"][3] = "c"
    for unknown in ("error", "skip"):
        with pytest.raises(BadFormat, match="add_space_prefix: expected false"):
            Tokenizer.from_keys(keys).encode("ab", unknown=unknown)
    tokenizer = Tokenizer.from_keys(keys | {"tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.encode("a b", add_special=False, unknown="skip") == [6]
    with pytest.raises(BadArgument, match="' ' .*character 1"):
        tokenizer.encode("a b")


@pytest.mark.parametrize("merges", [None, "h e", [], [["h", "e"]]])
def test_bpe_needs_merges(merges):
    with pytest.raises(BadFormat, match=r"^tokenizer\.ggml\.merges: expected a list of strings, found"):
        Tokenizer.from_keys(bpe_keys() | {"tokenizer.ggml.merges": merges})


def test_an_unknown_kind_is_named():
    for kind in ("unigram", "t5", "bert", 7, ["gpt2"]):
        with pytest.raises(Unsupported, match=re.escape(f"{kind!r}; known are none, character, byte, gpt2, llama")):
            Tokenizer.from_keys({"tokenizer.ggml.model": kind})
    with pytest.raises(BadFormat, match="characters"):
        Tokenizer.from_keys({"pygpt.tokenizer.model": "character"})
    assert np.array(Tokenizer.from_keys(character_keys("ab")).encode("ab")).tolist() == [0, 1]


# ---- arrays of strings


def strings_of(path, texts):
    file = _lib.File(write_gguf(path, {}, {"texts": texts, "text": "one", "numbers": [1, 2]}))
    assert file.keys.strings("text") is None is file.keys.strings("numbers") is file.keys.strings("missing")
    return file.keys.strings("texts")


def test_strings_are_the_same_from_a_file_and_from_a_list(tmp_path):
    texts = ["", "a", "b" * 300, "", "é😀", "a", "\0\0\0\0\0\0\0\0a", "last"]
    for strings in (strings_of(tmp_path / "s.gguf", texts), Strings.of(texts)):
        expected = [text.encode() for text in texts]
        assert list(strings) == expected == [strings[i] for i in range(len(strings))]
        assert strings.places() == {text: expected.index(text) for text in expected}
        assert [strings.find(text) for text in expected] == [expected.index(text) for text in expected]
        assert strings.find(b"las") is None is strings.find(b"missing")


def test_a_string_within_another_is_not_found(tmp_path):
    length = "\1" + "\0" * 7
    texts = ["x" + length + "ay", length + "a", "a"]
    for strings in (strings_of(tmp_path / "s.gguf", texts), Strings.of(texts)):
        assert strings.find(b"a") == 2 and strings.find(b"y") is None


def test_tokens_that_are_no_utf8_mean_their_bytes(tmp_path, monkeypatch):
    odd = [b"\xc3", b"\xa9", b"\xc3\xa9\xff", b"\xff\xfe"]
    keys = bpe_keys(["w", "x", "y", "z"])
    keys["tokenizer.ggml.tokens"][257:261] = odd
    keys["tokenizer.ggml.merges"] += [b"\xc3 \xa9", b"\xc3\xa9 \xff", b"\xff \xfe"]
    tokenizer = Tokenizer.from_file(write_gguf(tmp_path / "v.gguf", {}, keys))
    assert [tokenizer.token_bytes(id) for id in range(257, 261)] == odd
    assert tokenizer.decode([260]) == "\ufffd\ufffd"
    for long in (byte_pairs.LONG, 0):
        monkeypatch.setattr(byte_pairs, "LONG", long)
        assert tokenizer.encode("heé") == [256, 127, 102]
