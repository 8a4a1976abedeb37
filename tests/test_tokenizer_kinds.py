"""Byte-level BPE and sentencepiece against the libraries that they come from, on vocabularies trained on the spot."""

import io
import json
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import gguf
import pytest
from conftest import bpe_keys, write_gguf
from pygpt.convert.sentencepiece_tokenizer import from_model
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import pygpt
from pygpt import byte_pairs, sentence_pieces
from pygpt._lib import BadArgument, BadFormat, Unsupported
from pygpt.merging import merge
from pygpt.split_rules import BY_NAME, RULES
from pygpt.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

RULE_NAMES = [rule.names.split()[0] for rule in RULES]

ODD = [
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u2028", "\u3000", "\x01", "\x7f", "\u200b", "\ufeff"),
    *"'s 'RE 'll don't I'VE !! ?! ... --- ==== ```` ({[ /* */ // $ ~ <s> <0x41> <|x|> \ufffd \u2581".split(),
    *"1 12 123 1234567 3.14 1,000 ½ ² ٣ Ⅷ x86_64 CamelCase snake_case ÉCOLE é e\u0301 ß İ ﬁ \u212a \u2126 ʰ ǅ".split(),
    *"Привет ελληνικά 你好 。 ， カナ 한국어 こんにちは नमस्ते العربية 🦙 😀😀 \U0001f468\u200d\U0001f469 𝔘 𐐀".split(),
]


def words(seed, n):
    """Made-up words, the same every time."""
    rng = random.Random(seed)
    stems = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(1, 5))) for _ in range(60)]
    return [
        "".join(rng.choices(stems, k=rng.randrange(1, 3))).title() if rng.random() < 0.2 else rng.choice(stems)
        for _ in range(n)
    ]


def texts(seed, n):
    """Made-up words among everything that tokenizers stumble over."""
    rng = random.Random(seed)
    for _ in range(n):
        parts = rng.choices(ODD, k=rng.randrange(1, 12)) + words(rng.random(), rng.randrange(8))
        rng.shuffle(parts)
        yield rng.choice(["", " "]).join(parts)
    yield from ("", *ODD, *(odd * 7 for odd in ODD), "".join(ODD))


CORPUS = [" ".join(words(i, 12)) for i in range(60)] + list(texts(0, 60)) * 2


# ---- byte-level BPE


@pytest.fixture(scope="module")
def trained():
    """tokens and merges that join a lot, also across the borders of words: every rule's cuts matter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def trained_keys(trained, pre="gpt-2", **changes):
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": trained[0],
        "tokenizer.ggml.merges": trained[1],
    }
    return keys | changes


def library(trained, steps, **settings):
    """The tokenizers library with its own parts for cutting text."""
    tokens, merges = trained
    ids = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, [tuple(pair.split()) for pair in merges], **settings))
    if not any(isinstance(step, pre_tokenizers.ByteLevel) for step in steps):
        steps = [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return lambda text: tokenizer.encode(text).ids


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = split(r" ?[^(\s|[.,!?…。，、।۔،])]+")
KANA = split("[一-龥\u3040-ゟ゠-ヿ]+")
HANGUL = split("[一-龥\u0800-一가-\ud7ff]+")
STEPS = {  # as published in the models' tokenizer.json, with the parts that it names
    "gpt-2": [GPT2],
    "llama-bpe": [split(LETTERS + r"|\p{N}{1,3}|" + REST)],
    "smaug-bpe": [split(LETTERS + r"|\p{N}{1,3}|" + REST, "removed", True)],
    "qwen2": [split(LETTERS + r"|\p{N}|" + REST)],
    "smollm": [DIGITS, GPT2],
    "bloom": [BLOOM],
    "viking": [BLOOM, DIGITS],
    "minicpm5": [split(r"\p{N}{1,3}"), split(LETTERS + r"|\p{N}+|" + REST)],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), HANGUL, DIGITS],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"),
        KANA,
        split(
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
        ),
    ],
    "chameleon": [
        split("<sentinel:[0-9]+>"),
        split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
        split("([\t\n]|    |  )"),
        DIGITS,
        pre_tokenizers.Punctuation("isolated"),
        GPT2,
    ],
    "falcon": [pre_tokenizers.Punctuation("contiguous"), GPT2, split("[0-9][0-9][0-9]")],
}


@pytest.mark.parametrize("name", STEPS)
def test_rules_give_the_ids_of_the_tokenizers_library(name, trained):
    whole_words = BY_NAME[name].whole_words
    expected = library(trained, STEPS[name], ignore_merges=whole_words)
    tokenizer = pygpt.Tokenizer.from_keys(trained_keys(trained, name))
    for text in texts(1, 150):
        assert tokenizer.encode(text) == expected(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", RULE_NAMES)
def test_long_texts_get_the_same_ids_as_short_ones(name, trained, monkeypatch):
    tokenizer = pygpt.Tokenizer.from_keys(trained_keys(trained, name))
    short = [tokenizer.encode(text) for text in texts(2, 150)]
    monkeypatch.setattr(byte_pairs, "LONG", 0)
    assert [tokenizer.encode(text) for text in texts(2, 150)] == short
    assert "_encoder" in tokenizer._encoder.__dict__


@pytest.mark.parametrize("first", [1, 100])
def test_merges_that_are_read_when_they_are_needed_give_the_same_ids(first, trained, monkeypatch):
    monkeypatch.setattr(byte_pairs, "FIRST", first)
    tokenizer = pygpt.Tokenizer.from_keys(trained_keys(trained))
    assert tokenizer.encode("\x01") == [trained[0].index("\u0101")] and tokenizer._encoder._ranks == (0, {})
    expected = library(trained, STEPS["gpt-2"])
    for text in texts(7, 150):
        assert tokenizer.encode(text) == expected(text), text
    n_read, ranks = tokenizer._encoder._ranks
    assert n_read >= len(trained[1]) == len(ranks)


def test_threads_that_share_a_tokenizer_get_the_same_ids(trained, monkeypatch):
    monkeypatch.setattr(byte_pairs, "FIRST", 1)
    expected = list(map(library(trained, STEPS["gpt-2"]), texts(8, 100)))
    tokenizer = pygpt.Tokenizer.from_keys(trained_keys(trained))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: list(map(tokenizer.encode, texts(8, 100))), range(4)):
            assert found == expected


CUTS = {  # words with | between
    "gpt-2": "Hi| it|'s| '|RE| 12345| x| | y|\n\n| z你好|!?",
    "llama-bpe": "Hi| it|'s| '|RE| |123|45| x| | y|\n\n| z你好|!?",
    "smaug-bpe": "Hi| it|'s| '|RE| |123|45| x| | y|\n\n| z你好|!?",
    "qwen2": "I|'VE| |1|2| e|\u0301té|!!\n",
    "qwen35": "I|'VE| |1|2| e\u0301té|!!\n",
    "minicpm5": "I|'VE| |123|4| x",
    "jais-2": "a|        |    |  | | b",
    "exaone-moe": "so it is|'S| |1|2|!\n|\n",
    "seed-coder": "a|'S|!!|\n\n| |1|2",
    "bailingmoe": "a|'S|!!\n\n| |1|2|\n\n|b",
    "tekken": "Camel|Case|DON|'t|/\n| |1|2",
    "gpt-4o": "Camel|Case|DON't|/\n| |123|4",
    "tiny_aya": "a|1|234|567| |12| |123|4|x",
    "kimi-k2": "Hi|世界|World| it's|カナ|123|4",
    "starcoder": "it|'s| '|RE| |1|2|.|3",
    "falcon": "it|'|s| |`|a|`| |123|45",
    "default": "it|'|s| `|a|`| |123|45",
    "bloom": "it's| (|a|)| x|?!| no",
    "viking": "it's| |1|2|,| x",
    "deepseek-llm": "it|'|s| |1|2|\n|\n| Caf|é|你好",
    "deepseek-coder": "it|'|s| |1|2|\n|\n| Café|你好",
    "deepseek-v3": "it|'s| |123|4| Café|你好カナ|!?\n",
    "spark2_5": "it|'s| |1|2|3|4| Café|你好|!?|\n",
    "superbpe": "it's |1|234|567| ok",
    "chameleon": "a|  |b|\n|\n|!|?| |1|2",
}


@pytest.mark.parametrize("name", RULE_NAMES)
def test_every_rule_cuts_where_it_is_known_to(name):
    expected = CUTS[name].split("|")
    tokenizer = pygpt.Tokenizer.from_keys(bpe_keys() | {"tokenizer.ggml.pre": name})
    text = "".join(expected)
    found = [text[start:end] for _, (start, end) in tokenizer._encoder._splitter.pre_tokenize_str(text)]
    assert found == expected


def test_no_name_stands_for_two_rules():
    names = [name for rule in RULES for name in rule.names.split()]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert {"gpt-2", "llama-bpe", "llama3", "llama-v3", "qwen2", "deepseek-r1-qwen", "default", "olmo"} <= set(names)


def test_rules_agree_with_those_of_transformers():
    table = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    for name, pattern in table.GGUF_PRE_TOKENIZER_SPLITS.items():
        assert BY_NAME[name].patterns == (pattern,), name


def test_an_unknown_rule_is_named_with_those_that_are_known():
    with pytest.raises(Unsupported, match="by the rule 'my-rule'; known are gpt-2, .*chameleon"):
        pygpt.Tokenizer.from_keys(bpe_keys() | {"tokenizer.ggml.pre": "my-rule"})
    keys = bpe_keys()
    del keys["tokenizer.ggml.pre"]
    with pytest.raises(Unsupported, match="tokenizer.ggml.pre.*convert"):
        pygpt.Tokenizer.from_keys(keys)


@pytest.mark.parametrize("pre", ["pygpt-split", None])
@pytest.mark.parametrize("whole_words", [True, False])
def test_a_file_may_bring_its_own_rule(trained, pre, whole_words, tmp_path):
    patterns = [r"\p{N}{2}", r"[aeiou]+|[^aeiou\s]+", r"\s+$"]
    own = {"pygpt.tokenizer.split": patterns, "pygpt.tokenizer.ignore_merges": whole_words}
    keys = trained_keys(trained, **own)
    keys["tokenizer.ggml.pre"] = pre
    path = write_gguf(tmp_path / "v.gguf", {}, {name: value for name, value in keys.items() if value is not None})
    expected = library(trained, list(map(split, patterns)), ignore_merges=whole_words)
    tokenizer = pygpt.Tokenizer.from_file(path)
    for text in texts(3, 100):
        assert tokenizer.encode(text) == expected(text)
    named = pygpt.Tokenizer.from_keys(trained_keys(trained, "gpt-2", **own))
    assert named.encode("one two") == library(trained, [GPT2])("one two")


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("split", "one", "expected a list of regular expressions, found 'one'"),
        ("split", [1], "expected a list of regular expressions, found"),
        ("split", ["(["], r"expected regular expressions, found '\(\['"),
        ("ignore_merges", 1, "expected true or false, found 1"),
    ],
)
def test_an_own_rule_that_cannot_be_is_an_error(name, value, says):
    keys = bpe_keys() | {"tokenizer.ggml.pre": "own", "pygpt.tokenizer.split": ["a"]}
    with pytest.raises(BadFormat, match=rf"^pygpt\.tokenizer\.{name}: {says}.*convert"):
        pygpt.Tokenizer.from_keys(keys | {f"pygpt.tokenizer.{name}": value}).encode("he")


def test_text_is_composed_only_where_the_file_says_so():
    keys = bpe_keys(["Ã©"])
    keys["tokenizer.ggml.merges"] = ["Ã ©"]
    assert pygpt.Tokenizer.from_keys(keys).encode("e\u0301") != [257]
    nfc = keys | {"pygpt.tokenizer.normalizer": "NFC"}
    assert pygpt.Tokenizer.from_keys(nfc).encode("e\u0301") == [257] == pygpt.Tokenizer.from_keys(nfc).encode("é")
    with pytest.raises(Unsupported, match="normalizes text by 'NFKC'; known is 'NFC'"):
        pygpt.Tokenizer.from_keys(keys | {"pygpt.tokenizer.normalizer": "NFKC"})


def test_merges_that_lead_to_no_token_are_void_also_in_long_texts(monkeypatch):
    keys = bpe_keys(["lo", "ell"])
    keys["tokenizer.ggml.merges"] = "e l,h e,el l,l o,nospace,x y z, a,b ,q \ufffd,l o,h el".split(",")
    expected = {"hello": [256, 75, 257], "lo": [257], "ell": [68, 75, 75]}
    for long, first in ((byte_pairs.LONG, byte_pairs.FIRST), (byte_pairs.LONG, 1), (0, 1)):
        monkeypatch.setattr(byte_pairs, "LONG", long)
        monkeypatch.setattr(byte_pairs, "FIRST", first)
        tokenizer = pygpt.Tokenizer.from_keys(keys)
        assert {text: tokenizer.encode(text) for text in expected} == expected


def test_merging_takes_the_lowest_rank_and_of_equals_the_leftmost():
    ranks = {b"ab": 1, b"bc": 0, b"aa": 2, b"aaaa": 3}
    joined = lambda text: merge([bytes([c]) for c in text], lambda a, b: ranks.get(a + b))  # noqa: E731
    assert joined(b"abc") == [b"a", b"bc"] and joined(b"aaaaa") == [b"aaaa", b"a"]
    assert joined(b"") == [] and joined(b"x") == [b"x"] and joined(b"aaa") == [b"aa", b"a"]
    assert b"".join(joined(b"aabcab" * 50)) == b"aabcab" * 50


# ---- sentencepiece


def sentencepiece_keys(add_dummy_prefix=True, byte_fallback=True, **settings):
    """(a trained model, its vocabulary as GGUF's keys)"""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in CORPUS if text.strip()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        character_coverage=0.98,
        byte_fallback=byte_fallback,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=9,
        **settings,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(trained.get_piece_size())
    kinds = [
        UNKNOWN
        if trained.is_unknown(i)
        else CONTROL
        if trained.is_control(i)
        else BYTE
        if trained.is_byte(i)
        else NORMAL
        for i in ids
    ]
    return trained, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [trained.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [trained.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": add_dummy_prefix,
    }


SETTINGS = {
    "as in Llama 2": {},
    "without a space before": {"add_dummy_prefix": False},
    "without bytes": {"byte_fallback": False},
    "digits alone": {"split_digits": True},
    "across words": {"split_by_whitespace": False},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ids_are_those_of_sentencepiece(settings, tmp_path, monkeypatch):
    trained, keys = sentencepiece_keys(**settings)
    tokenizer = pygpt.Tokenizer.from_file(write_gguf(tmp_path / "v.gguf", {}, keys))
    for text in [*texts(4, 300), "\n".join(texts(5, 60))]:
        assert tokenizer.encode(text) == trained.encode(text), text
        if settings.get("byte_fallback", True) and "\u2581" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text == trained.decode(tokenizer.encode(text))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_cutting_long_texts_changes_no_ids(settings, monkeypatch):
    _, keys = sentencepiece_keys(**settings)
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    whole = [tokenizer.encode(text) for text in texts(6, 200)]
    monkeypatch.setattr(sentence_pieces, "SHORT", 0)
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    assert [tokenizer.encode(text) for text in texts(6, 200)] == whole
    assert [tokenizer.encode(text) for text in texts(6, 200)] == whole  # now as remembered


def test_the_tokens_that_sentencepiece_begins_with_need_no_keys():
    trained, keys = sentencepiece_keys()
    del keys["tokenizer.ggml.add_bos_token"]
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (trained.bos_id(), trained.eos_id(), True)
    assert tokenizer.encode("one") == trained.encode("one", add_bos=True)


def native(path, **settings):
    """(sentencepiece's own tokenizer, ours of what is converted from its file)"""
    sentencepiece = pytest.importorskip("sentencepiece")
    path.write_bytes(trained_model(**settings))
    trained = sentencepiece.SentencePieceProcessor(model_file=str(path))
    keys = from_model(str(path), trained.get_piece_size()).keys
    return trained, pygpt.Tokenizer.from_keys(plain(keys))


def plain(keys):
    """As they are read from a file."""
    return {name: list(value.value) if isinstance(value, gguf.GGUFValue) else value for name, value in keys.items()}


@cache
def trained_model(**settings):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    usual = {"model_type": "bpe", "vocab_size": 700, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 9}
    text = iter([text for text in CORPUS if text.strip()])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_writer=model, **usual | settings)
    return model.getvalue()


SYMBOLS = "<sep>,<user>,\uff21x,\u2581of,the"
AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
NATIVE = {
    "by default": {"byte_fallback": True},
    "by default, without bytes": {},
    "lower case, spaces kept": {
        "normalization_rule_name": "nmt_nfkc_cf",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    },
    "as llama2.c trains": {
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "symbols": AS_IT_IS | {"user_defined_symbols": SYMBOLS},
    "symbols and control tokens": AS_IT_IS | {"user_defined_symbols": SYMBOLS, "control_symbols": "<ctl>"},
    "symbols, normalized": {"byte_fallback": True, "user_defined_symbols": SYMBOLS},
    "symbols, without a space before": {"user_defined_symbols": SYMBOLS, "add_dummy_prefix": False},
}
BITS = [
    *(
        "one",
        "the",
        " of",
        "in",
        ".",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\xa0",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x01",
    ),
    *(
        "\uff21",
        "\uff21x",
        "\u2460",
        "\ufb01",
        "\ufdfa",
        "\xa8",
        "e\u0301",
        "U\u030c\u0301",
        "\u1104\u116d\u11b3",
        "\u4f60",
    ),
    *("<sep>", "<user>", "<ctl>", "\u2581", "\u2581of"),
]


@pytest.mark.parametrize("settings", NATIVE.values(), ids=NATIVE)
def test_a_model_of_sentencepiece_is_encoded_as_by_sentencepiece(settings, tmp_path):
    """Its normalization, its spaces, and what its users defined: all that training saw."""
    trained, tokenizer = native(tmp_path / "x.model", **settings)
    rng = random.Random(8)
    mixed = ["".join(rng.choices(BITS, k=rng.randrange(9))) for _ in range(1500)]
    for text in [*mixed, *texts(9, 100), "\n".join(texts(5, 60))]:
        assert tokenizer.encode(text) == trained.encode(text), text


def test_tokens_that_users_defined_are_not_cut(tmp_path):
    trained, tokenizer = native(tmp_path / "x.model", **NATIVE["symbols"])
    for text in ("one<user>two", "<user>one", "one <sep> two", "<sep><user>", " <sep>"):
        ids = tokenizer.encode(text)
        assert ids == trained.encode(text) and tokenizer.decode(ids) == text == trained.decode(ids)


def test_control_tokens_stand_outside_of_what_sentencepiece_sees(tmp_path):
    trained, tokenizer = native(tmp_path / "x.model", **NATIVE["symbols and control tokens"])
    ctl = trained.piece_to_id("<ctl>")
    ids = tokenizer.encode("<ctl>one <sep> two<ctl><sep>a", parse_special=True)
    assert ids == [ctl, *trained.encode("one <sep> two"), ctl, *trained.encode("<sep>a")]
    assert tokenizer.decode(ids) == "<ctl>one <sep> two<ctl><sep>a"


def test_what_the_vocabulary_lacks_is_named_by_its_place_before_normalization(tmp_path):
    _, tokenizer = native(tmp_path / "x.model")
    keys = plain(from_model(str(tmp_path / "x.model"), tokenizer.n_vocab).keys)
    keys["tokenizer.ggml.token_type"] = [CONTROL, *keys["tokenizer.ggml.token_type"][1:]]
    del keys["tokenizer.ggml.unknown_token_id"]
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    with pytest.raises(BadArgument, match="'\uff3e' .U.FF3E., character 7"):
        tokenizer.encode("  one  \uff3e")
    assert tokenizer.encode("one \uff3e ten", unknown="skip") == tokenizer.encode("one ten")


@pytest.mark.parametrize("damage", ["cut", "size", "offsets", "values"])
def test_a_hostile_table_of_sentencepiece_gives_ids_or_a_sentence(tmp_path, damage):
    _, tokenizer = native(tmp_path / "x.model", **NATIVE["by default"])
    keys = plain(from_model(str(tmp_path / "x.model"), tokenizer.n_vocab).keys)
    name = "tokenizer.ggml.precompiled_charsmap"
    table, rng = bytearray(keys[name]), random.Random(damage)
    if damage in ("cut", "size"):
        keys[name] = list(table[:1000] if damage == "cut" else b"\xff" + table[1:])
        with pytest.raises(BadFormat, match=f"^{name}: expected a table of sentencepiece.*convert the model again"):
            pygpt.Tokenizer.from_keys(keys)
        return
    for at in range(4, int.from_bytes(table[:4], "little"), 4):
        if rng.random() < 0.2:
            table[at + 1 : at + 4] = rng.randbytes(3) if damage == "offsets" else b"\xff\xff\x7f"
    keys[name] = [byte - 256 if byte > 127 else byte for byte in table]  # signed, as llama.cpp's converter may have it
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    for text in [*texts(4, 100), "".join(BITS) * 3]:
        tokenizer.decode(tokenizer.encode(text))


def test_a_file_that_says_nothing_gets_a_space_before_every_part():
    """As llama.cpp has it."""
    _, keys = sentencepiece_keys()
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "<user>", "  "]
    keys["tokenizer.ggml.scores"] = [*keys["tokenizer.ggml.scores"], -1000.0, -1000.0]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], USER_DEFINED, USER_DEFINED]
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    bare = pygpt.Tokenizer.from_keys(sentencepiece_keys()[1])
    n = bare.n_vocab
    ids = tokenizer.encode("one<user>two  three")
    assert ids == [*bare.encode("one"), n, *bare.encode("two"), n + 1, *bare.encode("three")]
    assert tokenizer.decode(ids) == "one<user>two  three"


PREPEND = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
STEPS_BEFORE = {  # what tokenizers does with spaces, by our name for it
    None: (normalizers.Sequence(PREPEND), None),
    "first": (None, pre_tokenizers.Metaspace("\u2581", "first", split=False)),
    "always": (None, pre_tokenizers.Metaspace("\u2581", "always", split=False)),
}
FLAGS = [{}, {"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}]


def joined_library(scheme, flags, **settings):
    """(the tokenizers library, our keys) of a small vocabulary in the way of Llama's, with a token of the user's."""
    merges = [("\u2581", "a"), ("\u2581", "b"), ("a", "b"), ("\u2581a", "b"), ("\u2581", "\u2581")]
    tokens = ["<unk>", "<s>", "\u2581", "a", "b", "\n", *map("".join, merges), "<u>"]
    vocab = {token: id for id, token in enumerate(tokens[:-1])}
    library = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", **settings))
    library.add_special_tokens([AddedToken("<s>", normalized=False)])
    library.add_tokens([AddedToken("<u>", normalized=False, **flags)])
    normalizer, pre_tokenizer = STEPS_BEFORE[scheme]
    if normalizer:
        library.normalizer = normalizer
    if pre_tokenizer:
        library.pre_tokenizer = pre_tokenizer
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, *[NORMAL] * (len(tokens) - 3), USER_DEFINED],
        "tokenizer.ggml.scores": [0.0] * 6 + [-float(i) for i in range(len(merges))] + [0.0],
        "tokenizer.ggml.add_bos_token": False,
    }
    keys |= {"pygpt.tokenizer.space_prefix": scheme} if scheme else {}
    return library, keys | {f"pygpt.tokenizer.{flag}": [len(tokens) - 1] for flag in flags}


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("scheme", STEPS_BEFORE)
def test_spaces_at_the_borders_of_parts_are_those_of_the_tokenizers_library(scheme, flags, tmp_path):
    library, keys = joined_library(scheme, flags, fuse_unk=True)
    tokenizer = pygpt.Tokenizer.from_file(write_gguf(tmp_path / "v.gguf", {}, keys))
    rng = random.Random(6)
    bits = [" ", "  ", "a", "b", "ab", "\n", "<s>", "<u>", "\u2581", "?", "_", "\u3000", "\x1c", "\u0301"]
    for _ in range(2000):
        text = "".join(rng.choices(bits, k=rng.randrange(1, 9)))
        assert tokenizer.encode(text, parse_special=True) == library.encode(text).ids, text


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "+".join(flags) or "plain")
def test_flags_of_added_tokens_count_in_byte_level_bpe_too(trained, flags):
    n = len(trained[0])
    keys = trained_keys(([*trained[0], "<u>"], trained[1]), **{f"pygpt.tokenizer.{flag}": [n] for flag in flags})
    keys["tokenizer.ggml.token_type"] = [NORMAL] * n + [USER_DEFINED]
    tokenizer = pygpt.Tokenizer.from_keys(keys)
    ids = {token: id for id, token in enumerate(trained[0])}
    library = Tokenizer(models.BPE(ids, [tuple(pair.split()) for pair in trained[1]]))
    library.pre_tokenizer = GPT2
    library.add_tokens([AddedToken("<u>", normalized=False, **flags)])
    rng = random.Random(7)
    for _ in range(300):
        text = "".join(rng.choices([*ODD, "<u>", "<u>", " "], k=rng.randrange(1, 9)))
        assert tokenizer.encode(text) == library.encode(text).ids, text


@pytest.mark.parametrize("fuses", [True, False])
def test_a_run_of_unknown_characters_is_one_where_the_file_does_not_deny_it(fuses):
    library, keys = joined_library("first", {}, fuse_unk=fuses)
    tokenizer = pygpt.Tokenizer.from_keys(keys | ({} if fuses else {"pygpt.tokenizer.fuse_unknown": False}))
    for text in ("a??b", "??", "a?<u>??", "?" * 2000 + "a?"):
        assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.encode("a??").count(0) == 1 + (not fuses)


@pytest.mark.parametrize("scheme", STEPS_BEFORE)
def test_text_that_is_read_back_behind_a_control_token_gives_the_same_ids(scheme):
    """What decode, stream and text_behind leave out is what encode puts in."""
    tokenizer = pygpt.Tokenizer.from_keys(joined_library(scheme, {}, fuse_unk=True)[1])
    for text in ("ab", "b", "  ab", "   b", "\nab"):
        ids = tokenizer.encode(text)
        assert tokenizer.encode(tokenizer.text_behind(ids, [])) == ids
        behind = tokenizer.encode(f"ab<s>{text}", parse_special=True)
        at = behind.index(1) + 1
        assert tokenizer.encode_part(tokenizer.text_behind(behind[at:], behind[:at])) == behind[at:], text
        if text[0] != " ":
            assert tokenizer.decode(ids) == text == tokenizer.stream([]).feed(ids)
            assert tokenizer.decode(behind) == f"ab<s>{text}"
            assert tokenizer.stream(behind[:at]).feed(behind[at:]) == text


def test_a_scheme_that_is_not_known_is_named():
    with pytest.raises(Unsupported, match="by the rule 'last'; known are 'first', 'always', 'text'"):
        pygpt.Tokenizer.from_keys(sentencepiece_keys()[1] | {"pygpt.tokenizer.space_prefix": "last"})


@pytest.mark.parametrize("value", [[99999], [-1], ["a"], 5, "rstrip"], ids=str)
def test_flags_for_tokens_that_cannot_be_are_an_error(value):
    with pytest.raises(BadFormat, match=r"^pygpt\.tokenizer\.rstrip: expected a list of ids below"):
        pygpt.Tokenizer.from_keys(bpe_keys() | {"pygpt.tokenizer.rstrip": value})


def test_a_stream_that_begins_a_text_leaves_out_the_space_before_it():
    """As decode does, and run.c of llama2.c: not behind a prompt, where the space is between two words."""
    t = pygpt.Tokenizer.from_keys(sentencepiece_keys()[1])
    bos, words = 1, t.encode("one two", add_special=False)
    for after, text in (([bos], "one two"), ([], "one two"), (None, " one two"), (words, " one two")):
        stream = t.stream(after)
        assert "".join(stream.feed([id]) for id in words) + stream.finish() == text, after
    stream = t.stream([bos])  # only the first
    assert "".join(stream.feed([id]) for id in [*words, *words]) == "one two one two"
    plain = pygpt.Tokenizer.from_keys(sentencepiece_keys(add_dummy_prefix=False)[1])
    assert plain.stream([bos]).feed(plain.encode(" x", add_special=False)) == " x"
