"""Vocabularies of tiktoken: its Encoding pickled, as nanochat's tokenizer.pkl, and its files of ranks, as Llama 3's.

    pickle   {"name", "pat_str", "mergeable_ranks": {bytes: id}, "special_tokens": {text: id}}, or a name alone
    ranks    a line for each token: its bytes in base64, a space, its id

tiktoken joins those two neighbours whose joint token has the lowest id. GGUF lists pairs instead, best first.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from pygpt._lib import BadFormat, Unsupported
from pygpt.byte_pairs import TooManySteps, run_rule
from pygpt.merging import merge
from pygpt.split_rules import LLAMA3, RULES
from pygpt.vocabulary import BYTE_OF, CONTROL, NORMAL

from . import gpt2_bpe
from .characters import round_up, unreadable
from .checkpoint import Vocabulary
from .hf_tokenizer import OWN_RULE, Table, check_text
from .unpickle import Stub, read_pickle, shown
from .whole_file import read_whole

LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}
MAX_FILE = 16 << 20  # of a file of ranks; the largest that is known has 4 MB
MAX_BYTES = 8 << 20  # of all tokens; the most that is known are 2 MB, and finding the pairs of 8 takes 20 seconds
MAX_TOKEN = 64 << 10  # bytes; the longest that is known has 128, and the pairs of a megabyte take 200 MB of memory

# The special tokens that play a part which GGUF has a key for: the first that is there. nanochat's texts and turns end
# where <|bos|> begins another text, too.
PARTS = (
    ("bos", ("<|bos|>", "<|begin_of_text|>", "<|endoftext|>")),
    ("eos", ("<|bos|>", "<|end_of_text|>", "<|endoftext|>")),
    ("eot", ("<|assistant_end|>", "<|eot_id|>")),
)
BEGINNINGS = ("<|bos|>", "<|begin_of_text|>")  # that are put before every text

LLAMA3_RANKS, LLAMA3_SPECIALS = 128000, 256
LLAMA3_NAMES = (  # the other ones are <|reserved_special_token_5|> and so on
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
    "<|reserved_special_token_2|> <|reserved_special_token_3|> <|start_header_id|> <|end_header_id|> "
    "<|reserved_special_token_4|> <|eot_id|>"
).split()


@dataclass
class Encoding:
    """What tiktoken needs to know: how text is split, the ids of byte strings, and those of special tokens."""

    path: str
    pattern: str
    ranks: dict[bytes, int]
    specials: dict[str, int]

    def __post_init__(self) -> None:
        tokens = [*self.ranks.items(), *self.specials.items()]
        wrong = next((item for item in tokens if not item[0] or type(item[1]) is not int or item[1] < 0), None)
        if wrong is not None or not self.ranks:
            found = f"{shown(wrong[0])} with the id {shown(wrong[1])}" if wrong else "none"
            raise BadFormat(f"{self.path}: expected tokens with ids, found {found}")
        if len({id for _, id in tokens}) < len(tokens):
            raise BadFormat(f"{self.path}: expected an id of its own for each of its {len(tokens)} tokens, found fewer")
        if (n := sum(map(len, self.ranks))) > MAX_BYTES:
            raise BadFormat(f"{self.path}: expected tokens of {MAX_BYTES >> 20} MB at most, found {n >> 20} MB")
        if (n := max(map(len, self.ranks))) > MAX_TOKEN:
            raise BadFormat(f"{self.path}: expected no token of more than {MAX_TOKEN >> 10} KB, found one of {n} bytes")

    @property
    def n_ids(self) -> int:
        return 1 + max([*self.ranks.values(), *self.specials.values()])


def vocabulary(encoding: Encoding, n_vocab: int, name: str) -> Vocabulary:
    """name: what it is called in the report."""
    check_size(encoding, n_vocab)
    table = Table(encoding.path, n_vocab)
    for token, id in encoding.ranks.items():
        table.put(id, spelled(token), NORMAL)
    for text, id in encoding.specials.items():
        table.put(id, text, CONTROL)
    pairs = find_pairs(encoding.ranks)
    n_single = sum(len(token) == 1 for token in encoding.ranks)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        **split_keys(encoding, is_whole=len(pairs) + n_single == len(encoding.ranks)),
        "tokenizer.ggml.tokens": table.fill(),
        "tokenizer.ggml.token_type": table.types,
        "tokenizer.ggml.merges": [f"{spelled(left)} {spelled(right)}" for left, right in pairs] or NO_MERGES,
        **special_keys(encoding.specials),
    }
    text = f"{name}, {n_vocab - table.n_padding} tokens"
    return Vocabulary(keys, text + (f" and {table.n_padding} ids of padding" if table.n_padding else ""))


def check_size(encoding: Encoding, n_vocab: int) -> None:
    """A model may have a few ids more, to a round number: they are padding."""
    n = encoding.n_ids
    if n_vocab not in (n, round_up(n, 64), round_up(n, 128)):
        raise BadFormat(
            f"{encoding.path}: expected a tokenizer of {n_vocab} ids as the checkpoint has, found {n}; "
            "name the one that it was trained with by --tokenizer"
        )


def spelled(token: bytes) -> str:
    """In GPT-2's alphabet of bytes."""
    return "".join(LETTER_OF[byte] for byte in token)


def special_keys(specials: dict[str, int]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for part, names in PARTS:
        if (found := next((name for name in names if name in specials), None)) is not None:
            keys[f"tokenizer.ggml.{part}_token_id"] = specials[found]
            if part == "bos":
                keys["tokenizer.ggml.add_bos_token"] = found in BEGINNINGS
    return keys


# ---- pairs

NO_MERGES = ["! !"]  # of a vocabulary of bytes alone: GGUF has no empty lists, and a pair that makes no token is void


def find_pairs(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token is joined from, by its rank.

    Bytes that end up as one token were joined to nothing outside of it before. So they were joined in the order in
    which the token's bytes are joined when they stand alone, whatever stands around them, and its last two parts are
    always the same. A token that joining does not lead to can only be a whole word.
    """
    found = {token: parts for token in ranks if len(token) > 1 and len(parts := last_parts(token, ranks)) == 2}
    return [(left, right) for left, right in sorted(found.values(), key=lambda parts: ranks[b"".join(parts)])]


def last_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What is left of its bytes when they are joined as far as can be without making the token itself."""
    n = len(token)
    return merge(
        [token[i : i + 1] for i in range(n)],
        lambda left, right: None if len(left) + len(right) == n else ranks.get(left + right),
    )


# ---- a pickle


def from_pickle(path: str, n_vocab: int) -> Vocabulary:
    """A pickled tiktoken.Encoding: its state is a dictionary, or the name of one that tiktoken brings."""
    try:
        value = read_pickle(path)
    except OSError as error:
        raise unreadable(path, error) from None
    state = value.state if type(value) is Stub else None
    if type(state) is str:
        return registered(path, state, n_vocab)
    fields = [state.get(key) for key in ("pat_str", "mergeable_ranks", "special_tokens")] if type(state) is dict else []
    if [type(field) for field in fields] != [str, dict, dict]:
        raise BadFormat(
            f"{path}: expected an Encoding of tiktoken with pat_str, mergeable_ranks and special_tokens, as nanochat "
            f"saves it, found {shown(value)}"
        )
    pattern, ranks, specials = fields
    for kind, tokens in ((bytes, ranks), (str, specials)):
        if wrong := [token for token in tokens if type(token) is not kind]:
            raise BadFormat(f"{path}: expected tokens to be {kind.__name__}, found {shown(wrong[0])}")
    return vocabulary(Encoding(path, pattern, ranks, specials), n_vocab, "tiktoken's BPE")


def registered(path: str, name: str, n_vocab: int) -> Vocabulary:
    if name != "gpt2":
        raise Unsupported(
            f"{path}: holds no ranks but only the name of tiktoken's encoding {shown(name)}; pygpt brings gpt2 alone"
        )
    if n_vocab < gpt2_bpe.N_TOKENS:
        raise BadFormat(f"{path}: names GPT-2's BPE of {gpt2_bpe.N_TOKENS} ids, and the model has only {n_vocab}")
    return Vocabulary(gpt2_bpe.vocabulary_keys(n_vocab), f"GPT-2's BPE, {gpt2_bpe.N_TOKENS} tokens")


# ---- a file of ranks

LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})\r?\n?")


def is_rank_file(head: bytes) -> bool:
    """By its first line."""
    return (first := LINE.match(head)) is not None and first[0].endswith(b"\n")


def from_rank_file(path: str, n_vocab: int) -> Vocabulary:
    """Llama 3's tokenizer.model. Other files of ranks do not say how text is split, nor what the special tokens are."""
    ranks = read_ranks(path)
    if len(ranks) != LLAMA3_RANKS or max(ranks.values()) != LLAMA3_RANKS - 1:
        raise Unsupported(
            f"{path}: expected the {LLAMA3_RANKS} ranks of Llama 3, found {len(ranks)}; how another vocabulary splits "
            "text and what its special tokens are is not in its file"
        )
    n_named = len(LLAMA3_NAMES)
    names = LLAMA3_NAMES + [f"<|reserved_special_token_{i - 5}|>" for i in range(n_named, LLAMA3_SPECIALS)]
    specials = {name: LLAMA3_RANKS + i for i, name in enumerate(names)}
    result = vocabulary(Encoding(path, LLAMA3, ranks, specials), n_vocab, "Llama 3's BPE")
    result.assumptions.append("The vocabulary is Llama 3's, by the number of its ranks.")
    return result


def read_ranks(path: str) -> dict[bytes, int]:
    data = read_whole(path, MAX_FILE, "a file of ranks")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            token = base64.b64decode(token, validate=True)
        except (AttributeError, ValueError):
            raise BadFormat(
                f"{path}: expected a token in base64 and its rank in line {number}, found {shown(repr(line)[2:-1])}"
            ) from None
        if token in ranks:
            raise BadFormat(f"{path}: the token in line {number} stands there twice")
        ranks[token] = int(rank)
    return ranks


# ---- how text is split


def split_keys(encoding: Encoding, is_whole: bool) -> dict[str, Any]:
    """is_whole: does joining lead to every token? Then it does not matter that tiktoken looks whole words up first."""
    rule = oniguruma(check_text(encoding.pattern, f"{encoding.path}: its pat_str"), encoding.path)
    for known in RULES:
        if known.patterns == (rule,) and (known.whole_words or is_whole):
            return {"tokenizer.ggml.pre": known.names.split()[0]}
    return {
        "tokenizer.ggml.pre": OWN_RULE,
        "pygpt.tokenizer.split": [rule],
        "pygpt.tokenizer.ignore_merges": True,
    }


GROUP = re.compile(r"\((\?(:|i:|=|!|<=|<!|>))?")
QUANTIFIER = re.compile(r"([?*+]|\{[0-9]{1,4}(?:,[0-9]{0,4})?\})([?+]?)")
ESCAPE = re.compile(
    r"\\(?:[sSdDrntfv]|[pP]\{(?:[LMNPSZC][a-z]?|Han|Hiragana|Katakana|Hangul|Latin|Greek|Cyrillic|Arabic|Thai)\}"
    r"|[]\\.+*?()|{}[^$#&~/'\"!,:;=@%`_ -])"
)
SHORT_PROPERTY = re.compile(r"\\([pP])([LMNPSZC])")  # \pL, which Oniguruma does not know
# Where case does not count, "ss" is "\xdf" to Oniguruma and not to Rust; and classes are not compared here.
FOLDED = re.compile(r"ss|ff|fi|fl|st|[^\x00-\x7f]|\\[pP]", re.IGNORECASE)
ANCHORS = {"^": r"\A", "$": r"\z"}  # Oniguruma's own are those of lines
MAX_DEPTH = 32


def oniguruma(pattern: str, path: str) -> str:
    """The regular expression of tiktoken (of the Rust crates regex and fancy_regex) in Oniguruma's syntax.

    What both read alike stays as it is. What they do not, and is not translated here, is an error.
    """
    reader = _Pattern(pattern)
    try:
        result = reader.alternatives(0)
        if reader.at < len(pattern):
            raise _Unknown
    except _Unknown:
        raise Unsupported(
            f"{path}: its tokenizer splits text by a regular expression that is not understood from its character "
            f"{reader.at} on, {shown(pattern[reader.at :])}"
        ) from None
    check_rule(result, path)
    return result


# Every kind of character: letters, marks, numbers, punctuation, symbols, separators, others.
CHARACTERS = (
    "aA\u01c5\u02b0\u4f60\u0301\u0903\u20dd1\u2167\xb2_-([)]\xab\xbb!'+$^\xa9 \u2028\u2029\n\t\r\x00\u200b\ue000"
    "\u0378\U0001f600"
)


def check_rule(rule: str, path: str) -> None:
    """tiktoken drops what the rule does not match; here it would become words."""
    from tokenizers import Regex, pre_tokenizers

    try:
        matches = pre_tokenizers.Split(Regex(rule), "removed", invert=True)
    except Exception as error:  # the library raises nothing narrower
        raise Unsupported(f"{path}: its tokenizer splits text by {shown(rule)}, which is no rule ({error})") from None
    for text in (*CHARACTERS, CHARACTERS):
        try:
            words = run_rule(matches.pre_tokenize_str, text)
        except TooManySteps:
            raise Unsupported(
                f"{path}: its tokenizer splits text by {shown(rule)}, which takes too many steps; a rule whose parts "
                "match the same text in one way only does not"
            ) from None
        if "".join(word for word, _ in words) != text:
            raise Unsupported(f"{path}: its tokenizer splits text by {shown(rule)}, which leaves out {shown(text)}")


class _Unknown(Exception):
    """Something that Oniguruma might read otherwise."""


class _Pattern:
    """Reads a regular expression once, from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def take(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self.pattern, self.at)
        self.at = found.end() if found else self.at
        return found

    def alternatives(self, depth: int) -> str:
        """Up to a closing parenthesis or the end."""
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            parts.append(self.quantified(depth))
        return "".join(parts)

    def quantified(self, depth: int) -> str:
        atom = self.atom(depth)
        found = self.take(QUANTIFIER)
        if not found:
            return atom
        if atom in ("|", *ANCHORS.values()) or QUANTIFIER.match(self.pattern, self.at):
            raise _Unknown
        count, manner = found.groups()
        if count[0] == "{" and manner == "+":  # Oniguruma would repeat it once more
            return f"(?>{atom}{count})"
        if count[0] == "{" and manner == "?" and "," not in count:  # and here it would make it optional
            return atom + count
        return atom + count + manner

    def atom(self, depth: int) -> str:
        c = self.pattern[self.at]
        if c == "(":
            return self.group(depth + 1)
        if c == "[":
            return self.character_class()
        if c == "\\":
            return self.escape()
        if c in "?*+{}]":
            raise _Unknown
        self.at += 1
        return ANCHORS.get(c, c)

    def group(self, depth: int) -> str:
        opening, begin = self.take(GROUP), self.at
        if depth > MAX_DEPTH or opening is None or self.pattern.startswith("?", begin):
            raise _Unknown
        inside = self.alternatives(depth)
        is_folded = opening[2] == "i:" and FOLDED.search(self.pattern[begin : self.at])
        if not self.pattern.startswith(")", self.at) or is_folded:
            raise _Unknown
        self.at += 1
        return f"{opening[0]}{inside})"

    def escape(self) -> str:
        if short := self.take(SHORT_PROPERTY):
            return rf"\{short[1]}{{{short[2]}}}"
        if found := self.take(ESCAPE):
            return found[0]
        raise _Unknown

    def character_class(self) -> str:
        """No classes in classes: their operators differ."""
        begin = "[^" if self.pattern.startswith("[^", self.at) else "["
        self.at += len(begin)
        parts = [begin]
        while self.at < len(self.pattern) and self.pattern[self.at] != "]":
            c = self.pattern[self.at]
            if c == "[" or self.pattern.startswith(("&&", "--", "~~"), self.at):
                raise _Unknown
            if c == "\\":
                parts.append(self.escape())
            else:
                parts.append(c)
                self.at += 1
        if len(parts) == 1 or self.at == len(self.pattern):
            raise _Unknown
        self.at += 1
        return "".join(parts) + "]"
