"""Text to token ids and back, built from what a model file holds: a class per kind of vocabulary, a row each in KINDS.

Knows nothing of models. How text is joined to tokens is in byte_pairs and sentence_pieces; here is what kinds share.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any, ClassVar, NamedTuple

from pygpt._lib import BadArgument, BadFormat, File, Unsupported
from pygpt.byte_pairs import BytePairs
from pygpt.sentence_pieces import SPACE, Charsmap, SentencePieces, UnknownCharacters
from pygpt.split_rules import BY_NAME, Rule
from pygpt.vocabulary import (
    BYTE_OF,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    data,
    flag,
    scores,
    strings,
    token_id,
    token_ids,
    wrong,
)

SKIP_HINT = 'leave it out, or drop such characters with unknown="skip" (--unknown skip)'

# Control tokens that end a text or somebody's turn. Files name one or two by key, and chat models use more.
ENDS = frozenset(
    "</s> <eos> <EOT> [EOT] <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> "
    "<end_of_turn> <end_of_utterance> <turn|> <\uff5cend\u2581of\u2581sentence\uff5c>".split()
)

# What sentencepiece begins its vocabularies with, for files that do not name these tokens: (id, kind).
USUAL_IDS = {"unknown": (0, UNKNOWN), "bos": (1, CONTROL), "eos": (2, CONTROL)}

# Before what sentencepiece's space goes. Where a file does not say: before every part of a text between special tokens.
FIRST = "first"  # before the part that begins a text, if it does not begin with a space itself
ALWAYS = "always"  # before every part that does not
TEXT = "text"  # before a whole text, and also where it begins with a token that users defined
SCHEMES = (None, FIRST, ALWAYS, TEXT)

WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
WHITES = re.compile(f"[{WHITE}]*")


class Borders(NamedTuple):
    """Special tokens, by their ids, that take white space from the text before or behind them, or part no words."""

    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    single_word: frozenset[int] = frozenset()


NO_BORDERS = Borders()


class Tokenizer:
    """What a model file knows about text. Make one with Tokenizer.from_file; the kinds are subclasses.

    kind: "character", "bpe", "sentencepiece" or "none"; n_vocab: ids below this have a meaning; bos, eos: the tokens
    before and after a text, None if there are none; add_bos, add_eos: does encode add them?
    """

    kind: ClassVar[str] = "none"
    n_vocab: int = 0
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    add_eos: bool = False

    @staticmethod
    def from_file(path: str | PathLike[str]) -> Tokenizer:
        """The tokenizer of any GGUF file, also of one that holds only a vocabulary.

        Raises pygpt.Error where the file cannot be read or its vocabulary is of a kind that is not known.
        """
        with File(path) as file:
            return Tokenizer.from_keys(file.keys)

    @staticmethod
    def from_keys(keys: Mapping[str, Any]) -> Tokenizer:
        """The same, from the keys of a file that is open already."""
        model = keys.get("tokenizer.ggml.model", "none")
        if model in ("none", "no_vocab"):
            model = keys.get("pygpt.tokenizer.model", "none")
        if not isinstance(model, str) or model not in KINDS:
            raise Unsupported(f"the file's tokenizer is of the kind {model!r}; known are {', '.join(KINDS)}")
        return KINDS[model](keys)

    def __init__(self, keys: Mapping[str, Any], add_bos: bool = False) -> None:
        """add_bos: whether texts begin with the start token where the file does not say. n_vocab is set already."""
        if self.n_vocab:
            self.bos, self.eos = self._special_id(keys, "bos"), self._special_id(keys, "eos")
            self.add_bos = self._adds(keys, "bos", self.bos, add_bos)
            self.add_eos = self._adds(keys, "eos", self.eos, False)

    def _special_id(self, keys: Mapping[str, Any], name: str) -> int | None:
        return token_id(keys, f"tokenizer.ggml.{name}_token_id", self.n_vocab)

    def _adds(self, keys: Mapping[str, Any], name: str, id: int | None, default: bool) -> bool:
        wanted = flag(keys, f"tokenizer.ggml.add_{name}_token", default and id is not None)
        if wanted and id is None:
            raise wrong(f"tokenizer.ggml.{name}_token_id", f"an id, because add_{name}_token is true", None)
        return wanted

    def encode(
        self, text: str, add_special: bool = True, unknown: str = "error", parse_special: bool = False
    ) -> list[int]:
        """The ids of a text.

        add_special: with the start and end tokens that the model wants, unless the text spells them out itself.
        unknown: "error" names the first character that the vocabulary lacks and its position, "skip" drops such.
        parse_special: control tokens that the text spells out become their ids, as chat templates need it. Otherwise
        they are text like any other.
        """
        ids = self._encode(text, skips(unknown), parse_special)
        if add_special and self.add_bos and self.bos is not None and not (parse_special and ids[:1] == [self.bos]):
            ids.insert(0, self.bos)
        if add_special and self.add_eos and self.eos is not None and not (parse_special and ids[-1:] == [self.eos]):
            ids.append(self.eos)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; control tokens are spelled out."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self, after: Sequence[int] | None = None) -> TextStream:
        """A decoder for ids that come one after the other. after: those that they follow, if that is known."""
        return TextStream(self.token_bytes)

    def text_behind(self, ids: Iterable[int], after: Sequence[int]) -> str:
        """The text that behind `after` becomes these ids again."""
        return self.stream(after).feed(ids)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for, perhaps a part of a character."""
        raise BadArgument("this model has no vocabulary: it speaks token ids only")

    def banned_ids(self, n_vocab: int) -> list[int]:
        """Ids of a model with n_vocab that no text can produce: padding that was never trained."""
        return []

    def start_ids(self) -> list[int]:
        """What stands for an empty prompt: a newline for characters, else the token before a text, or after one."""
        raise BadArgument("this model has no vocabulary: it needs token ids to start from")

    def stop_ids(self) -> list[int]:
        """Ids that end a text."""
        return [] if self.eos is None else [self.eos]

    def _encode(self, text: str, skip: bool, parse_special: bool) -> list[int]:
        raise BadArgument("this model has no vocabulary: it speaks token ids only")

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.n_vocab:
            raise BadArgument(f"the vocabulary holds ids 0 to {self.n_vocab - 1}, and {id} is none of them")
        return id


class CharacterTokenizer(Tokenizer):
    """Every id is one character, as in nanoGPT's shakespeare_char."""

    kind = "character"

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.characters = [text.decode("utf-8", "replace") for text in strings(keys, "pygpt.tokenizer.characters")]
        self.n_vocab = len(self.characters)
        self._ids = {text: id for id, text in enumerate(self.characters) if text}
        if len(self._ids) < sum(map(bool, self.characters)):
            raise BadFormat("pygpt.tokenizer.characters: expected each character once, found one twice; convert again")
        super().__init__(keys)

    def token_bytes(self, id: int) -> bytes:
        return self.characters[self._checked(id)].encode("utf-8", "replace")

    def banned_ids(self, n_vocab: int) -> list[int]:
        return [id for id in range(n_vocab) if id >= self.n_vocab or not self.characters[id]]

    def start_ids(self) -> list[int]:
        return [self._ids.get("\n", 0)]

    def _encode(self, text: str, skip: bool, parse_special: bool) -> list[int]:
        ids = self._ids
        if skip:
            return [ids[c] for c in text if c in ids]
        try:
            return [ids[c] for c in text]
        except KeyError as error:
            raise _unknown(error.args[0], text.index(error.args[0])) from None


class ByteTokenizer(Tokenizer):
    """Every id is one byte of UTF-8; ids from 256 on stand for nothing."""

    kind = "byte"
    n_vocab = 256

    def token_bytes(self, id: int) -> bytes:
        return bytes([self._checked(id)])

    def banned_ids(self, n_vocab: int) -> list[int]:
        return list(range(self.n_vocab, n_vocab))

    def start_ids(self) -> list[int]:
        return [ord("\n")]

    def _encode(self, text: str, skip: bool, parse_special: bool) -> list[int]:
        try:
            return list(text.encode("utf-8", "ignore" if skip else "strict"))
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise _unknown(text[error.start], error.start) from None


class PieceTokenizer(Tokenizer):
    """What the kinds share whose tokens are pieces of text: control tokens and others that stand for what they are."""

    _cuts: tuple[int, ...] = (USER_DEFINED,)  # the kinds of tokens that are found in any text before it is encoded

    def __init__(self, keys: Mapping[str, Any], add_bos: bool) -> None:
        self._vocabulary = Vocabulary(keys)
        self.n_vocab = len(self._vocabulary)
        super().__init__(keys, add_bos)
        self._ends = [self.eos, self._special_id(keys, "eot"), self._special_id(keys, "eom")]
        self.borders = Borders(*(token_ids(keys, f"pygpt.tokenizer.{f}", self.n_vocab) for f in Borders._fields))
        self._normalizer = keys.get("pygpt.tokenizer.normalizer")
        if self._normalizer not in (None, "NFC"):
            raise Unsupported(f"the file's tokenizer normalizes text by {self._normalizer!r}; known is 'NFC'")

    def _is_text(self, id: int) -> bool:
        """Is the token spelled in its kind's way? Others stand for what is written in the file."""
        return self._vocabulary.kinds[id] not in (CONTROL, USER_DEFINED, UNKNOWN)

    def banned_ids(self, n_vocab: int) -> list[int]:
        return [*self._vocabulary.of_kind(UNUSED), *range(self.n_vocab, n_vocab)]

    def start_ids(self) -> list[int]:
        if self.eos is None and self.bos is None:
            raise BadArgument("the prompt is empty, and this model has no token that texts start from")
        return [self.eos if self.bos is None else self.bos]

    def stop_ids(self) -> list[int]:
        """Ids that end a text: those that the file names, and control tokens that are known for it."""
        ends = {text: id for text, id in self._special(CONTROL).items() if text in ENDS}
        if "<|return|>" in ends and "<|call|>" in ends:  # gpt-oss: <|end|> ends only a part of its answer
            ends.pop("<|end|>", None)
        return list(dict.fromkeys(id for id in (*self._ends, *ends.values()) if id is not None))

    def _special(self, *kinds: int) -> dict[str, int]:
        tokens, ids = self._vocabulary.tokens, self._vocabulary.of_kind(*kinds) if kinds else ()
        texts = {tokens[id].decode("utf-8", "replace"): id for id in ids}
        return {text: id for text, id in texts.items() if text and "\ufffd" not in text}

    @cached_property
    def text_tokens(self) -> dict[str, int]:
        return self._special(*self._cuts)

    @cached_property
    def template_tokens(self) -> dict[str, int]:
        return self._special(*self._cuts, CONTROL, UNKNOWN)

    def encode_part(self, text: str, unknown: str = "error", begins: bool = False) -> list[int]:
        """The ids of a part of a text between special tokens. begins: it begins the text."""
        return self._encode(text, skips(unknown), False, begins)

    def _encode(self, text: str, skip: bool, parse_special: bool, begins: bool = True) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            if not skip:
                raise _unknown(text[error.start], error.start) from None
            text = text.encode("utf-8", "ignore").decode()
        ids: list[int] = []
        for start, part, id in cut(text, self.template_tokens if parse_special else self.text_tokens, self.borders):
            if id is not None:
                ids.append(id)
            else:
                part = unicodedata.normalize("NFC", part) if self._normalizer else part
                ids += self._encode_plain(part, start, skip, begins and not start)
        return ids

    def _encode_plain(self, text: str, start: int, skip: bool, begins: bool) -> list[int]:
        """The ids of a part without special tokens. start: its place in the text, for error messages."""
        raise NotImplementedError


class BPETokenizer(PieceTokenizer):
    """Byte-level byte-pair encoding, as in GPT-2, Llama 3 and Qwen."""

    kind = "bpe"

    def __init__(self, keys: Mapping[str, Any]) -> None:
        rule = _split_rule(keys)
        super().__init__(keys, rule.add_bos)
        merges = strings(keys, "tokenizer.ggml.merges")
        self._encoder = BytePairs(self._vocabulary, merges, rule.patterns, rule.whole_words)

    def token_bytes(self, id: int) -> bytes:
        token = self._vocabulary.tokens[self._checked(id)]
        if self._is_text(id):
            try:
                return bytes(BYTE_OF[letter] for letter in token.decode())
            except (KeyError, UnicodeDecodeError):  # not spelled in GPT-2's alphabet: it can only mean itself
                pass
        return token

    def _encode_plain(self, text: str, start: int, skip: bool, begins: bool) -> list[int]:
        if missing := self._encoder.missing:  # a vocabulary without all 256 bytes
            unknown = {c for c in set(text) if not missing.isdisjoint(c.encode())}
            if unknown and not skip:
                first = min(unknown, key=text.index)
                raise _unknown(first, start + text.index(first))
            text = "".join(c for c in text if c not in unknown) if unknown else text
        return self._encoder.encode(text)


class SentencePieceTokenizer(PieceTokenizer):
    """sentencepiece's byte-pair encoding, as in Llama 2 and llama2.c: a space is put before texts."""

    kind = "sentencepiece"

    def __init__(self, keys: Mapping[str, Any]) -> None:
        super().__init__(keys, add_bos=True)
        self._add_prefix = flag(keys, "tokenizer.ggml.add_space_prefix", True)
        self._scheme = keys.get("pygpt.tokenizer.space_prefix")
        if self._scheme not in SCHEMES:
            raise Unsupported(
                f"the file's tokenizer puts spaces before texts by the rule {self._scheme!r}; known are "
                f"{', '.join(map(repr, SCHEMES[1:]))}"
            )
        self._charsmap = Charsmap(table) if (table := data(keys, "tokenizer.ggml.precompiled_charsmap")) else None
        self._trims = flag(keys, "tokenizer.ggml.remove_extra_whitespaces", False)
        unknown, fuses = self._special_id(keys, "unknown"), flag(keys, "pygpt.tokenizer.fuse_unknown", True)
        self._encoder = SentencePieces(self._vocabulary, scores(keys, self.n_vocab), unknown, fuses)
        self._symbols: dict[str, int] = {}  # tokens that are found behind the space, when it is there
        if self._scheme == TEXT:
            self._symbols = {text.replace(" ", SPACE): id for text, id in self.text_tokens.items()}
            self._cuts, self.text_tokens = (), {}

    def _special_id(self, keys: Mapping[str, Any], name: str) -> int | None:
        found = super()._special_id(keys, name)
        if found is None and name in USUAL_IDS:
            id, kind = USUAL_IDS[name]
            return id if self._vocabulary.kinds[id : id + 1] == bytes([kind]) else None
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without the spaces that encode puts before a text or its parts."""
        pieces, ids = [], list(ids)
        for i, id in enumerate(ids):
            piece = self.token_bytes(id)
            is_added = piece[:1] == b" " and self._is_text(id) and self._gets_space(ids[max(0, i - 2) : i])
            pieces.append(piece[1:] if is_added else piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self, after: Sequence[int] | None = None) -> TextStream:
        """The same, without the space before a text that begins here."""
        return TextStream(self.token_bytes, after is not None and self._gets_space(list(after[-2:])))

    def text_behind(self, ids: Iterable[int], after: Sequence[int]) -> str:
        sparing = self._scheme in (FIRST, ALWAYS)  # a space that the text has itself is enough
        return self.stream(None if sparing else after).feed(ids)

    def _gets_space(self, after: list[int]) -> bool:
        """Does encode put a space before what comes behind these ids, of which two are enough to know?"""
        if not after or not self._add_prefix:
            return self._add_prefix
        if self._scheme == FIRST:
            return after == [self.bos]
        return self._vocabulary.kinds[after[-1]] == CONTROL if self._scheme == TEXT else not self._is_text(after[-1])

    def token_bytes(self, id: int) -> bytes:
        token = self._vocabulary.tokens[self._checked(id)]
        if id in self._encoder.bytes:
            return bytes([self._encoder.bytes[id]])
        return token.replace(SPACE.encode(), b" ") if self._is_text(id) else token

    def _encode_plain(self, text: str, start: int, skip: bool, begins: bool) -> list[int]:
        normal = self._normalize(text)
        try:
            return self._encode_normal(normal, begins)
        except UnknownCharacters as error:
            unknown = {" " if c == SPACE else c for c in error.characters}
        if unknown.isdisjoint(normal):
            raise wrong("tokenizer.ggml.add_space_prefix", "false, because no token begins with a space", True)
        if not skip:
            first = next((i for i, c in enumerate(text) if not unknown.isdisjoint(self._normalize(f"|{c}|"))), 0)
            raise _unknown(text[first], start + first)
        return self._encode_plain("".join(c for c in normal if c not in unknown), start, skip, begins)

    def _encode_normal(self, text: str, begins: bool) -> list[int]:
        """The ids of a normalized text, or UnknownCharacters."""
        if self._needs_space(text, begins):
            text = " " + text
        ids: list[int] = []
        for _, part, id in cut(text.replace(" ", SPACE), self._symbols):
            ids += self._encoder.encode(part) if id is None else [id]
        return ids

    def _needs_space(self, text: str, begins: bool) -> bool:
        if not self._add_prefix or (self._trims and not text):
            return False
        if self._scheme in (FIRST, ALWAYS) and text.startswith((" ", SPACE)):
            return False
        return begins or self._scheme != FIRST

    def _normalize(self, text: str) -> str:
        """As sentencepiece does, which leaves tokens that users defined as they are."""
        if self._charsmap:
            parts = cut(text, self._symbols)
            text = "".join(self._charsmap.normalize(part) if id is None else part for _, part, id in parts)
        return re.sub("  +", " ", text).lstrip(" ").rstrip(" " + SPACE) if self._trims else text


class TextStream:
    """Ids in, complete characters out: bytes wait until the character that they belong to is whole.

    drops_space: one at the very begin is no part of the text.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], drops_space: bool = False) -> None:
        self._token_bytes, self._drops_space = token_bytes, drops_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete; those that are no UTF-8 are U+FFFD."""
        data = b"".join(map(self._token_bytes, ids))
        if self._drops_space and data:
            data, self._drops_space = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


KINDS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "none": Tokenizer,
    "character": CharacterTokenizer,
    "byte": ByteTokenizer,
    "gpt2": BPETokenizer,
    "llama": SentencePieceTokenizer,
}


def _split_rule(keys: Mapping[str, Any]) -> Rule:
    """The rule that the file names, or its own: a list of patterns."""
    name = keys.get("tokenizer.ggml.pre")
    if isinstance(name, str) and name in BY_NAME:
        return BY_NAME[name]
    if "pygpt.tokenizer.split" in keys:
        own = keys["pygpt.tokenizer.split"]
        if not isinstance(own, list) or not all(isinstance(pattern, str) for pattern in own):
            raise wrong("pygpt.tokenizer.split", "a list of regular expressions", own)
        return Rule("", tuple(own), flag(keys, "pygpt.tokenizer.ignore_merges", False))
    if name is None:
        raise Unsupported(
            "the file does not say how its tokenizer splits text (the key tokenizer.ggml.pre): "
            "convert the model again, with a converter that writes it"
        )
    raise Unsupported(f"the file's tokenizer splits text by the rule {name!r}; known are {', '.join(BY_NAME)}")


def cut(text: str, special: Mapping[str, int], borders: Borders = NO_BORDERS) -> Iterator[tuple[int, str, int | None]]:
    """(start, part, its id if it is a special token). Of tokens that begin at the same place the longest wins.

    White space that a token takes belongs to its part.
    """
    found = sorted((token for token in special if token in text), key=len, reverse=True)
    at = 0
    for match in re.finditer("|".join(map(re.escape, found)), text) if found else ():
        start, end, id = match.start(), match.end(), special[match[0]]
        if id in borders.single_word and (_is_of_word(text[start - 1 : start]) or _is_of_word(text[end : end + 1])):
            continue
        if id in borders.lstrip:
            start = at + len(text[at:start].rstrip(WHITE))
        if id in borders.rstrip:
            end = WHITES.match(text, end).end()  # type: ignore[union-attr]  it matches everywhere
        if start > at:
            yield at, text[at:start], None
        yield start, text[start:end], id
        at = end
    if at < len(text):
        yield at, text[at:], None


def _is_of_word(c: str) -> bool:
    """Is it what Unicode's regular expressions call \\w? Not if there is no character."""
    kind = unicodedata.category(c) if c else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or c in ("\u200c", "\u200d")


def skips(unknown: str) -> bool:
    if unknown not in ("error", "skip"):
        raise BadArgument(f"unknown is 'error' or 'skip', and {unknown!r} is neither")
    return unknown == "skip"


def _unknown(c: str, position: int) -> BadArgument:
    return BadArgument(f"the vocabulary lacks {c!r} (U+{ord(c):04X}), character {position} of the text: {SKIP_HINT}")
