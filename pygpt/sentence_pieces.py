"""sentencepiece's byte-pair encoding, as files of the kind "llama" hold it: characters are joined by tokens' scores.

And the table by which it normalizes text before.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from operator import add

from pygpt.merging import merge
from pygpt.vocabulary import BYTE, Vocabulary, wrong

SPACE = "\u2581"  # how sentencepiece spells a space
SHORT = 1000  # characters of a text that is not cut
WORD, REMEMBERED = 64, 1 << 16  # pieces of up to so many characters are remembered, and so many of them


class UnknownCharacters(Exception):
    """Characters that the vocabulary has no tokens for, neither for their bytes nor for what is unknown."""

    def __init__(self, characters: set[str]) -> None:
        self.characters = characters


class SentencePieces:
    """bytes: the byte that an id stands for. unknown: the id for characters that have neither a token nor bytes.

    fuses: is a run of such characters one id?
    """

    def __init__(self, vocabulary: Vocabulary, scores: list[float], unknown: int | None, fuses: bool = True) -> None:
        self._vocabulary, self._scores, self._unknown, self._fuses = vocabulary, scores, unknown, fuses
        self._pieces: dict[str, list[int]] = {}
        self.bytes: dict[int, int] = {}
        ids = vocabulary.of_kind(BYTE) if vocabulary.has_kinds else range(len(vocabulary))
        for id in ids:
            if spelled := re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", vocabulary.tokens[id]):
                self.bytes[id] = int(spelled[1], 16)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, or UnknownCharacters."""
        text = text.replace(" ", SPACE)
        lacking: set[str] = set()
        ids: list[int] = []
        pieces = self._pieces
        for piece in self._cut(text) if len(text) > SHORT else [text]:
            found = pieces.get(piece)
            if found is None:
                found = self._encode_piece(piece, lacking)
                if len(piece) <= WORD:
                    if len(pieces) >= REMEMBERED:
                        pieces.clear()
                    pieces[piece] = found
            is_run = self._fuses and self._unknown is not None and ids[-1:] == found[:1] == [self._unknown]
            ids += found[1:] if is_run else found
        if lacking:
            pieces.clear()
            raise UnknownCharacters(lacking)
        return ids

    def _cut(self, text: str) -> list[str]:
        """Pieces between which nothing can be joined, because no token holds those two characters side by side."""
        pairs = self._pairs
        cuts = [i for i, pair in enumerate(map(add, text, text[1:]), 1) if pair not in pairs]
        return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]

    @cached_property
    def _pairs(self) -> set[str]:
        texts = (token.decode("utf-8", "replace") for token in self._vocabulary.ids)
        return {pair for text in texts for pair in map(add, text, text[1:])}

    def _encode_piece(self, piece: str, lacking: set[str]) -> list[int]:
        ids: list[int] = []
        for part in merge([c.encode() for c in piece], self._cost):
            id = self._id_of(part)
            if id is not None:
                ids.append(id)
            elif all(byte in self._id_of_byte for byte in part):
                ids += [self._id_of_byte[byte] for byte in part]
            elif self._unknown is not None:
                ids += [] if self._fuses and ids[-1:] == [self._unknown] else [self._unknown]
            else:
                lacking.add(part.decode())
        return ids

    def _cost(self, left: bytes, right: bytes) -> float | None:
        id = self._id_of(left + right)
        return None if id is None else -self._scores[id]

    def _id_of(self, text: bytes) -> int | None:
        """The id of a token. How bytes are spelled is not for text to use."""
        id = self._vocabulary.ids.get(text)
        return None if id in self.bytes else id

    @cached_property
    def _id_of_byte(self) -> dict[int, int]:
        return {byte: id for id, byte in reversed(self.bytes.items())}


class Charsmap:
    """What sentencepiece replaces in a text, from left to right and always the longest that it knows.

    | u32 size of the trie in bytes | u32 unit .. | texts in UTF-8, with a zero behind each |

    The trie is a double array: a byte of UTF-8 leads from a node to the unit at node ^ byte, if its LABEL is that byte,
    and from there to the node at that place ^ offset. A unit with LEAF ends a key: the unit at its node holds the place
    of the new text. Nothing that the bytes say is trusted.
    """

    LABEL, LEAF, VALUE = 0x800000FF, 0x100, 0x7FFFFFFF

    def __init__(self, data: bytes) -> None:
        if not self.fits(data):
            raise wrong("tokenizer.ggml.precompiled_charsmap", "a table of sentencepiece", f"{len(data)} bytes")
        end = 4 + int.from_bytes(data[:4], "little")
        self._units, self._texts = memoryview(data[4:end]).cast("I"), data[end:]
        self._characters = _Characters(self)

    @staticmethod
    def fits(data: bytes) -> bool:
        size = int.from_bytes(data[:4], "little")
        return 4 <= size <= len(data) - 4 and size % 4 == 0

    def normalize(self, text: str) -> str:
        pairs = {pair for pair in {*map(add, text, text[1:])} if self.longest(pair)[2]}
        if not pairs:  # every character for itself
            return text.translate(self._characters)
        parts, at = [], 0
        for start, pair in enumerate(map(add, text, text[1:])):
            if start >= at and pair in pairs:
                end, new, _ = self.longest(text, start)
                parts += [text[at:start].translate(self._characters), new]
                at = end
        return "".join(parts) + text[at:].translate(self._characters)

    def longest(self, text: str, start: int = 0) -> tuple[int, str, bool]:
        """(where it ends, what it becomes, does the whole rest of the text begin a key?) at a place of a text."""
        units, node = self._units, _offset(self._units[0])
        end, new = start + 1, text[start : start + 1]
        for i in range(start, len(text)):
            for byte in text[i].encode():
                node ^= byte
                unit = units[node] if node < len(units) else 0
                if unit & self.LABEL != byte:
                    return end, new, False
                node ^= _offset(unit)
            if unit & self.LEAF and node < len(units):
                end, new = i + 1, self._text(units[node] & self.VALUE)
        return end, new, True

    def _text(self, place: int) -> str:
        end = self._texts.find(b"\0", place)
        return self._texts[place : None if end < 0 else end].decode("utf-8", "replace")


class _Characters(dict[int, str]):
    """What a character becomes, as str.translate asks for it; looked up once."""

    def __init__(self, charsmap: Charsmap) -> None:
        self._charsmap = charsmap

    def __missing__(self, code: int) -> str:
        self[code] = self._charsmap.longest(chr(code))[1]
        return self[code]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)
