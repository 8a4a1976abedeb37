"""Byte-level byte-pair encoding: text is cut into words by a rule, and in each the file's merges join bytes to tokens.

Words are cut by the tokenizers library. Short texts are merged here, because building that library's encoder takes as
long as a megabyte of text; long ones by it. Both give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

from pygpt._lib import BadFormat, Strings, Unsupported
from pygpt.merging import merge
from pygpt.vocabulary import BYTE_OF, FIRST, Vocabulary

LONG = 1 << 18  # characters, from which on the library's encoder is built
WORD, REMEMBERED = 64, 1 << 16  # words of up to so many bytes are remembered, and so many of them


class TooManySteps(Exception):
    """A rule tries more ways to match a text than the library allows."""


def run_rule(call: Callable[[str], Any], text: str) -> Any:
    """call(text) of the tokenizers library, which panics where a rule takes too many steps."""
    try:
        return call(text)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which is no Exception, and cannot be imported
            raise
        raise TooManySteps from None


class BytePairs:
    """patterns, whole_words: as in split_rules.Rule. A merge whose result is no token that text can become is void."""

    def __init__(self, vocabulary: Vocabulary, merges: Strings, patterns: tuple[str, ...], whole_words: bool) -> None:
        self._vocabulary, self._merges = vocabulary, merges
        self._patterns, self._whole_words = patterns, whole_words
        self._words: dict[str, list[int]] = {}
        self._ranks: tuple[int, dict[bytes, int]] = 0, {}  # how many merges were read, and their places

    def encode(self, text: str) -> list[int]:
        """The ids of a text that has none of the `missing` bytes in it."""
        try:
            if len(text) >= LONG:
                return run_rule(lambda text: self._encoder.encode(text, add_special_tokens=False), text).ids
            return self._encode_words(run_rule(self._splitter.pre_tokenize_str, text))
        except TooManySteps:
            raise Unsupported(
                f"the rule by which the model splits text takes too many steps in this text of {len(text)} characters; "
                "give it in smaller parts"
            ) from None

    def _encode_words(self, split: list[tuple[str, Any]]) -> list[int]:
        ids: list[int] = []
        words = self._words
        for word, _ in split:
            found = words.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(word) <= WORD:
                    if len(words) >= REMEMBERED:
                        words.clear()
                    words[word] = found
            ids += found
        return ids

    @cached_property
    def missing(self) -> set[int]:
        """Bytes without a token: characters that have one of them in UTF-8 are unknown."""
        return {byte for letter, byte in BYTE_OF.items() if self._vocabulary.id_of(letter.encode()) is None}

    def _encode_word(self, word: str) -> list[int]:
        id_of = self._vocabulary.id_of
        if self._whole_words and (id := id_of(word.encode())) is not None:
            return [id]
        n_read, ranks = self._ranks

        def rank(left: bytes, right: bytes) -> int | None:
            found = ranks.get(left + b" " + right)
            return found if found is not None and id_of(left + right) is not None else None

        parts = merge([letter.encode() for letter in word], rank)
        while n_read < len(self._merges) and any(id_of(left + right) is not None for left, right in pairwise(parts)):
            n_read, ranks = self._read_merges(n_read, ranks)
            parts = merge(parts, rank)
        return [id for id in map(id_of, parts) if id is not None]

    def _read_merges(self, n_read: int, ranks: dict[bytes, int]) -> tuple[int, dict[bytes, int]]:
        """Reads as many more as were read. Few words need them all: a word is done when no two parts make a token."""
        end = max(FIRST, 2 * n_read)
        ranks = self._merges.places(n_read, end) | ranks  # of equal merges the first counts
        self._ranks = end, ranks  # at once, for the sake of other threads
        return end, ranks

    @cached_property
    def _splitter(self) -> Any:
        """Text to words, which are spelled in GPT-2's alphabet."""
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = []
        for pattern in self._patterns:
            try:
                steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
            except Exception as error:  # the library raises nothing narrower
                raise BadFormat(
                    f"pygpt.tokenizer.split: expected regular expressions, found {pattern!r} ({error}); "
                    "convert the model again"
                ) from None
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    @cached_property
    def _encoder(self) -> Any:
        """Text to ids, by the library."""
        from tokenizers import Tokenizer, models

        ids = {text: id for token, id in self._vocabulary.ids.items() if (text := _text(token))}
        pairs = dict.fromkeys(_text(pair).partition(" ")[::2] for pair in self._merges)
        merges = [(left, right) for left, right in pairs if left in ids and right in ids and left + right in ids]
        encoder = Tokenizer(models.BPE(ids, merges, ignore_merges=self._whole_words))
        encoder.pre_tokenizer = self._splitter
        return encoder


def _text(token: bytes) -> str:
    """A token as the library needs it; empty if it is no UTF-8, which no word is spelled in."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return ""
