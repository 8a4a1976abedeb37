"""sentencepiece's byte-pair encoding, as files of the kind "llama" hold it: characters are joined by tokens' scores."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from operator import add

from pygpt.merging import merge
from pygpt.vocabulary import BYTE, Vocabulary

SPACE = "\u2581"  # how sentencepiece spells a space
SHORT = 1000  # characters of a text that is not cut
WORD, REMEMBERED = 64, 1 << 16  # pieces of up to so many characters are remembered, and so many of them


class UnknownCharacters(Exception):
    """Characters that the vocabulary has no tokens for, neither for their bytes nor for what is unknown."""

    def __init__(self, characters: set[str]) -> None:
        self.characters = characters


class SentencePieces:
    """bytes: the byte that an id stands for. unknown: the id for characters that have neither a token nor bytes."""

    def __init__(self, vocabulary: Vocabulary, scores: list[float], unknown: int | None) -> None:
        self._vocabulary, self._scores, self._unknown = vocabulary, scores, unknown
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
            is_run = self._unknown is not None and ids[-1:] == found[:1] == [self._unknown]
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
                ids += [self._unknown] if ids[-1:] != [self._unknown] else []  # a run of unknown characters is one
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
