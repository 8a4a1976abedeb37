"""tiktoken's vocabularies become GGUF keys that give tiktoken's ids for any text."""

import base64
import json
import pickle
import random

import pytest

pytest.importorskip("torch", reason="the folder of reference twins imports PyTorch: pip install torch")
tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is what ids are compared with: pip install tiktoken")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pygpt.convert import gpt2_bpe, tiktoken_ranks, vocabularies  # noqa: E402
from pygpt.convert.checkpoint import Options  # noqa: E402
from reference.nanochat import SPECIALS, SPLIT, train_ranks  # noqa: E402

import pygpt  # noqa: E402
from pygpt import byte_pairs  # noqa: E402
from pygpt.split_rules import GPT2, GPT4O, LLAMA3  # noqa: E402
from pygpt.vocabulary import BYTE_OF, CONTROL, UNUSED  # noqa: E402

PATTERNS = {  # as published by their makers
    "nanochat": SPLIT,
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt2 of 2019": GPT2,
    "llama 3": LLAMA3,
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": GPT4O,
}
BITS = (
    "the quick brown fox 's 'S 'LL 've 'Re 'D I'm we'd they'll DON'T o'\u017f "
    "1 12 123 1234567 \u0663\u0664\u0665 \u2167 \xb2\xbd 3.14 1,000,000 "
    "caf\xe9 cafe\u0301 \xdfs Stra\xdfe \ufb01n \u01c5ungla \u02b0a \u4f60\u597d\u4e16\u754c \u30ab\u30bf\u30ab\u30ca "
    "\ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f !? ... -- ::/\\ <|bos|> "
    "<|endoftext|> \u20ac$ \x00 \x7f \x85 \u0378 \ue000 \U0010ffff a_b"
).split(" ") + ["", " ", "  ", "\t", "\n", "\r\n", "\n\n", "\r", "\xa0", "\u2003", "\u3000", "\u2028", "\u200b", "\x0b"]


def nasty(seed, n):
    """Texts whose borders of words are anything but clear."""
    rng = random.Random(seed)
    return ["".join(rng.choices(BITS, k=rng.randrange(12))) for _ in range(n)] + BITS


@pytest.fixture(scope="module")
def ranks():
    """Tokens that reach across the borders of words, so that every cut shows in the ids."""
    return train_ranks([text.replace("|>", "") for text in nasty(0, 300)], 900, None)


def encoding(ranks, pattern=SPLIT, specials=SPECIALS):
    first = 1 + max(ranks.values())
    special_tokens = specials if type(specials) is dict else {name: first + i for i, name in enumerate(specials)}
    return tiktoken.Encoding("rustbpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)


def pickled(path, value, protocol=None):
    path.write_bytes(pickle.dumps(value, protocol))
    return str(path)


def tokenizer_of(path, reference, n_vocab=None):
    return pygpt.Tokenizer.from_keys(tiktoken_ranks.from_pickle(path, n_vocab or reference.n_vocab).keys)


def refused(call, match, *arguments):
    with pytest.raises(pygpt.Error, match=match) as caught:
        call(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600, sentence


# ---- ids


@pytest.mark.parametrize("name", PATTERNS)
def test_texts_get_tiktokens_ids(name, ranks, tmp_path):
    reference = encoding(ranks, PATTERNS[name])
    tokenizer = tokenizer_of(pickled(tmp_path / "tokenizer.pkl", reference), reference)
    for text in nasty(name, 400):
        expected = reference.encode_ordinary(text)
        assert tokenizer.encode(text, add_special=False) == expected, text
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize("name", PATTERNS)
def test_long_texts_get_tiktokens_ids(name, ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_pairs, "LONG", 0)
    reference = encoding(ranks, PATTERNS[name])
    tokenizer = tokenizer_of(pickled(tmp_path / "tokenizer.pkl", reference), reference)
    for text in ["".join(nasty(3, 300)), *nasty(4, 100)]:
        assert tokenizer.encode(text, add_special=False) == reference.encode_ordinary(text), text


LETTERS = st.text("ab c1\n\u00e9", max_size=24)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(min_size=2, max_size=7), max_size=40, unique=True), st.randoms(), st.lists(LETTERS))
def test_any_order_of_any_tokens_gives_tiktokens_ids(tokens, rng, texts):
    """Ranks that no training would give: tokens without parts, parts that come after what they are parts of."""
    words = [bytes(rng.choices(b"ab c1\n\xc3\xa9", k=rng.randrange(2, 8))) for _ in range(40)]
    ids = [*range(256 + len({*tokens, *words}))]
    rng.shuffle(ids)
    ranks = dict(zip([bytes([b]) for b in range(256)] + sorted({*tokens, *words}), ids, strict=True))
    for pattern in (SPLIT, r"[\s\S]+"):
        reference = encoding(ranks, pattern)
        source = tiktoken_ranks.Encoding("x", pattern, ranks, {})
        tokenizer = pygpt.Tokenizer.from_keys(tiktoken_ranks.vocabulary(source, source.n_ids, "x").keys)
        for text in [*texts, *("".join(rng.choices("ab c1\n\u00e9", k=30)) for _ in range(5))]:
            assert tokenizer.encode(text) == reference.encode_ordinary(text), (text, pattern)


def test_the_pairs_of_gpt2_are_the_published_ones():
    ranks = {bytes(BYTE_OF[c] for c in token): id for id, token in enumerate(gpt2_bpe.tokens()[:-1])}
    pairs = tiktoken_ranks.find_pairs(ranks)
    spelled = tiktoken_ranks.spelled
    assert [f"{spelled(left)} {spelled(right)}" for left, right in pairs] == gpt2_bpe.merges()


def test_a_token_that_joining_does_not_lead_to_is_found_as_a_whole_word(tmp_path):
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256}
    reference = encoding(ranks)
    tokenizer = tokenizer_of(pickled(tmp_path / "tokenizer.pkl", reference), reference)
    assert tokenizer.encode("abc", add_special=False) == [256] == reference.encode_ordinary("abc")
    assert tokenizer.encode("abcd", add_special=False) == [*b"abcd"] == reference.encode_ordinary("abcd")


def test_a_vocabulary_of_bytes_alone_works(tmp_path):
    reference = encoding({bytes([b]): 255 - b for b in range(256)})
    tokenizer = tokenizer_of(pickled(tmp_path / "tokenizer.pkl", reference), reference)
    text = "h\xe9!! \U0001f600\n"
    assert tokenizer.encode(text, add_special=False) == reference.encode_ordinary(text)
    assert tokenizer.decode(reference.encode_ordinary(text)) == text


# ---- special tokens


def test_special_tokens_have_their_ids_and_never_come_from_text(ranks, tmp_path):
    reference = encoding(ranks)
    vocabulary = tiktoken_ranks.from_pickle(pickled(tmp_path / "t.pkl", reference), reference.n_vocab)
    first = len(ranks)
    keys = vocabulary.keys
    assert keys["tokenizer.ggml.tokens"][first:] == list(SPECIALS)
    assert keys["tokenizer.ggml.token_type"][first:] == [CONTROL] * len(SPECIALS)
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    assert (tokenizer.bos, tokenizer.add_bos) == (first, True)
    assert tokenizer.stop_ids() == [first, first + SPECIALS.index("<|assistant_end|>")]
    for name in SPECIALS:
        assert tokenizer.encode(name) == [first, *reference.encode_ordinary(name)]
        assert max(tokenizer.encode(name, add_special=False)) < first
        assert tokenizer.encode(name, add_special=False, parse_special=True) == [reference.encode_single_token(name)]
    assert vocabulary.text == f"tiktoken's BPE, {reference.n_vocab} tokens"


def test_a_gap_between_ids_and_ids_up_to_a_round_number_are_padding(ranks, tmp_path):
    specials = {"<|endoftext|>": len(ranks) + 5}
    path = pickled(tmp_path / "t.pkl", encoding(ranks, specials=specials))
    n_vocab = -(-(len(ranks) + 6) // 64) * 64
    vocabulary = tiktoken_ranks.from_pickle(path, n_vocab)
    tokenizer = pygpt.Tokenizer.from_keys(vocabulary.keys)
    unused = [*range(len(ranks), len(ranks) + 5), *range(len(ranks) + 6, n_vocab)]
    assert tokenizer.banned_ids(n_vocab) == unused
    assert {vocabulary.keys["tokenizer.ggml.token_type"][id] for id in unused} == {UNUSED}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (len(ranks) + 5,) * 2 + (False,)
    assert f"{len(ranks) + 1} tokens and {len(unused)} ids of padding" in vocabulary.text


# ---- how text is split


def test_a_rule_that_has_a_name_is_stored_by_it(ranks):
    keys = [
        tiktoken_ranks.split_keys(tiktoken_ranks.Encoding("x", pattern, ranks, {}), is_whole)
        for pattern, is_whole in ((LLAMA3, False), (GPT2, True), (GPT2, False), (SPLIT, True))
    ]
    assert keys[:2] == [{"tokenizer.ggml.pre": "llama-bpe"}, {"tokenizer.ggml.pre": "gpt-2"}]
    own = {"tokenizer.ggml.pre": "pygpt-split", "pygpt.tokenizer.ignore_merges": True}
    assert keys[2:] == [{**own, "pygpt.tokenizer.split": [pattern]} for pattern in (GPT2, SPLIT)]


def test_what_the_two_regular_expressions_read_differently_is_translated():
    translated = {
        r"\p{N}{1,3}+": r"(?>\p{N}{1,3})",
        r"(?:ab|c){2,}+x": r"(?>(?:ab|c){2,})x",
        r"[a-z]{2}?b": r"[a-z]{2}b",
        r"^\s+$": r"\A\s+\z",
        r"\pL\PN": r"\p{L}\P{N}",
        r"[$^]$": r"[$^]\z",
    }
    for rust, ours in translated.items():
        assert tiktoken_ranks.oniguruma(rust + r"|\S|\s", "x") == ours + r"|\S|\s"
    for pattern in (SPLIT, GPT2, LLAMA3, GPT4O, r"(?>a++b)*+(?<=x)(?<!y)\.\-[\]\s]{2,3}?|[\s\S]"):
        assert tiktoken_ranks.oniguruma(pattern, "x") == pattern


@pytest.mark.parametrize(
    "pattern", [r"\p{N}{1,3}+", r"(?:ab|a){1,2}+b", r"a{2}?", "^a", "b$", r"(?:^|\n)ab(?:\n|$)", r"\pL"]
)
def test_translated_patterns_cut_as_tiktoken_does(pattern, ranks):
    pattern += r"|[\s\S]"
    reference = encoding(ranks, pattern)
    source = tiktoken_ranks.Encoding("x", pattern, ranks, {})
    tokenizer = pygpt.Tokenizer.from_keys(tiktoken_ranks.vocabulary(source, source.n_ids, "x").keys)
    for text in ("12345678 1234", "ababab abb b", "aaaaa", "ab\nab\n", "ab\nab", "\u01c5a1"):
        assert tokenizer.encode(text) == reference.encode_ordinary(text), text


@pytest.mark.parametrize(
    "pattern",
    [r"\bw", r"\w+", r"(?x) a", "(?P<n>a)", "[a&&b]", "[[a]b]", "(?i:ss)", "(?i:\xe4)", "a**", "(a", "a)", "*a", "[]",
     "[a", "\\", "{2}", r"(a)\1", r"\K", "(?i)a", r"\p{Foo}", "a|+", "(" * 40 + ")" * 40],
)  # fmt: skip
def test_what_might_be_read_differently_is_refused(pattern):
    refused(tiktoken_ranks.oniguruma, "^t.pkl: its tokenizer splits text by a regular expression", pattern, "t.pkl")


def test_a_pattern_that_is_none_is_refused():
    refused(tiktoken_ranks.oniguruma, "^t.pkl: its tokenizer splits text by .* which is no rule", "[z-a]", "t.pkl")


@pytest.mark.parametrize(
    ("pattern", "left_out"), [(r"\S+", " "), (r".", r"\\n"), (r"[\p{L}\p{N}\s]+", "\u0301"), ("", "a")]
)
def test_a_pattern_that_leaves_text_out_is_refused(pattern, left_out):
    refused(tiktoken_ranks.oniguruma, f"^t.pkl: .* which leaves out .*{left_out}", pattern, "t.pkl")


ENDLESS = r"(?:\S|\s|.)*(?:\S|\s|.)*x|\S|\s"  # before it fails it tries all ways to match a text: 2^n


def test_a_pattern_of_too_many_steps_is_refused():
    refused(tiktoken_ranks.oniguruma, "^t.pkl: its tokenizer splits text by .* takes too many steps", ENDLESS, "t.pkl")


@pytest.mark.parametrize("long", [1 << 18, 0], ids=["words", "the library"])
def test_a_text_of_too_many_steps_is_refused(long, monkeypatch):
    monkeypatch.setattr(byte_pairs, "LONG", long)
    source = tiktoken_ranks.Encoding("x", SPLIT, BYTES, {})
    keys = tiktoken_ranks.vocabulary(source, source.n_ids, "x").keys | {"pygpt.tokenizer.split": [ENDLESS]}
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    refused(tokenizer.encode, "takes too many steps in this text of 1600 characters", "ab cd ef" * 200)
    assert tokenizer.encode("abc") == [*b"abc"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_what_is_no_panic_goes_on(kind):
    def stopped(text):
        raise kind

    with pytest.raises(kind):
        byte_pairs.run_rule(stopped, "abc")


# ---- pickles


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(protocol, ranks, tmp_path):
    reference = encoding(ranks)
    tokenizer = tokenizer_of(pickled(tmp_path / "t.pkl", reference, protocol), reference)
    assert tokenizer.encode("the quick", add_special=False) == reference.encode_ordinary("the quick")


class Named:
    """Pickles as one of tiktoken's own encodings does: by its name."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return tiktoken.Encoding.__new__, (tiktoken.Encoding,), self.name


def test_an_encoding_that_is_only_named_must_be_one_that_ships(tmp_path):
    vocabulary = tiktoken_ranks.from_pickle(pickled(tmp_path / "t.pkl", Named("gpt2")), 50304)
    assert vocabulary.keys == gpt2_bpe.vocabulary_keys(50304)
    path = pickled(tmp_path / "t.pkl", Named("cl100k_base"))
    refused(tiktoken_ranks.from_pickle, "only the name of tiktoken's encoding 'cl100k_base'", path, 100277)
    path = pickled(tmp_path / "t.pkl", Named("gpt2"))
    refused(tiktoken_ranks.from_pickle, "50257 ids, and the model has only 300", path, 300)


BYTES = {bytes([b]): b for b in range(256)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pat_str": 5}, "expected an Encoding of tiktoken with pat_str"),
        ({"mergeable_ranks": {}}, "expected tokens with ids, found none"),
        ({"mergeable_ranks": {"a": 1}}, "expected tokens to be bytes, found 'a'"),
        ({"mergeable_ranks": {b"a": -1}}, "with the id -1"),
        ({"mergeable_ranks": {b"a": 1.5}}, "with the id 1.5"),
        ({"mergeable_ranks": {b"": 0}}, "expected tokens with ids"),
        ({"mergeable_ranks": {b"a": 1, b"b": 1}}, "an id of its own for each of its 3 tokens"),
        ({"special_tokens": {"<|bos|>": 7}}, "an id of its own"),
        ({"special_tokens": {b"x": 256}}, "expected tokens to be str"),
        ({"special_tokens": {"<|bos|>": 1 << 70}}, "a tokenizer of 257 ids as the checkpoint has"),
        ({"special_tokens": {"a": 256}}, "the token 'a' has two ids"),
        ({"special_tokens": {"\ud800": 256}}, "half of a surrogate pair"),
        ({"special_tokens": {"<|bos|>": 300}}, "expected a tokenizer of 257 ids as the checkpoint has, found 301"),
        ({"special_tokens": {}}, "expected a tokenizer of 257 ids as the checkpoint has, found 256; .*--tokenizer"),
        ({"pat_str": r"\w"}, "that is not understood from its character 0 on"),
        ({"pat_str": "\ud800"}, "half of a surrogate pair"),
        ({"mergeable_ranks": {bytes(9 << 20): 0}}, "expected tokens of 8 MB at most, found 9 MB"),
        ({"mergeable_ranks": {bytes(1 << 20): 0}}, "expected no token of more than 64 KB, found one of 1048576"),
    ],
)
def test_a_damaged_pickle_is_one_sentence(changes, says, tmp_path):
    state = {"name": "x", "pat_str": SPLIT, "mergeable_ranks": BYTES, "special_tokens": {"<|bos|>": 256}} | changes
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(Named(state)))
    refused(tiktoken_ranks.from_pickle, f"^{path}: .*{says}", str(path), 257)


@pytest.mark.parametrize("value", [{"vocab": 1}, None, [1], random.Random(0), Named(5), Named(None)])
def test_a_pickle_of_something_else_is_one_sentence(value, tmp_path):
    path = pickled(tmp_path / "t.pkl", value)
    refused(tiktoken_ranks.from_pickle, "expected an Encoding of tiktoken", path, 257)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    path = tmp_path / "t.pkl"
    path.write_bytes(pickle.dumps(Named("gpt2"))[:-5])
    refused(tiktoken_ranks.from_pickle, "t.pkl: ", str(path), 257)
    for call in (tiktoken_ranks.from_pickle, tiktoken_ranks.from_rank_file):
        refused(call, "there is no such file", str(tmp_path / "none"), 257)


# ---- files of ranks


def rank_file(path, ranks, end="\n"):
    lines = (f"{base64.b64encode(token).decode()} {rank}{end}" for token, rank in ranks.items())
    path.write_bytes("".join(lines).encode())
    return str(path)


@pytest.fixture(scope="module")
def llama3(ranks):
    """As many ranks as Llama 3 has: those that were trained here, and words that are never met."""
    fill = (b"\xff" + json.dumps(i).encode() for i in range(1 << 20))
    return ranks | {token: id for id, token in zip(range(len(ranks), 128000), fill, strict=False)}


def test_llama_3s_ranks_are_known_by_their_number(llama3, tmp_path):
    path = rank_file(tmp_path / "tokenizer.model", llama3)
    vocabulary = vocabularies.find("params.json", 128256, Options(tokenizer=path))
    keys, tokens = vocabulary.keys, vocabulary.keys["tokenizer.ggml.tokens"]
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    named = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    assert [tokens.index(name) - 128000 for name in named] == [0, 1, 6, 7, 9]
    assert tokens[128008] == "<|reserved_special_token_4|>" and tokens[128255] == "<|reserved_special_token_250|>"
    assert len(tokens) == len(set(tokens)) == 128256 and set(keys["tokenizer.ggml.token_type"][128000:]) == {CONTROL}
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    assert tokenizer.stop_ids() == [128001, 128009]
    reference = encoding(llama3, LLAMA3, ())
    for text in nasty(5, 50):
        assert tokenizer.encode(text) == [128000, *reference.encode_ordinary(text)]
    assert "by the number of its ranks" in vocabulary.assumptions[0]


def test_files_of_ranks_are_known_by_their_first_line(ranks, tmp_path):
    for end in ("\n", "\r\n"):
        path = rank_file(tmp_path / "x", ranks, end)
        with open(path, "rb") as file:
            assert tiktoken_ranks.is_rank_file(file.read(256))
        assert tiktoken_ranks.read_ranks(path) == ranks
    for head in (b"", b"IQ== 0", b"IQ== x\n", b"\x80\x04", b"PK\x03\x04", b"hello world\n", b"\x0a\x0e 1\n"):
        assert not tiktoken_ranks.is_rank_file(head)


def test_other_ranks_do_not_say_how_text_is_split(ranks, tmp_path):
    path = rank_file(tmp_path / "x", ranks)
    refused(tiktoken_ranks.from_rank_file, "expected the 128000 ranks of Llama 3, found 900", path, 1000)


def test_ranks_for_a_model_of_another_size_are_refused(llama3, tmp_path):
    path = rank_file(tmp_path / "x", llama3)
    refused(tiktoken_ranks.from_rank_file, "a tokenizer of 32000 ids as the checkpoint has, found 128256", path, 32000)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("IQ==", "in line 2, found 'IQ=='"),
        ("I?== 1", "in line 2"),
        ("IQ= 1", "in line 2"),
        ("IQ== 12345678901", "in line 2"),
        ("IQ== 0", "line 2 stands there twice"),
        ("Iw== 1 2", "in line 2"),
    ],
)
def test_a_damaged_file_of_ranks_is_one_sentence(line, says, tmp_path):
    path = tmp_path / "x"
    path.write_text(f"IQ== 0\n{line}\n")
    refused(tiktoken_ranks.from_rank_file, f"^{path}: .*{says}", str(path), 128256)


def test_a_large_file_of_ranks_is_not_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\n" * (17 << 20))
    refused(tiktoken_ranks.from_rank_file, "at most 16 MB, found 17 MB", str(path), 128256)
