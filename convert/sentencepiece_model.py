"""Reads tokenizer.model, what sentencepiece trains: the pieces with their scores, and how text becomes pieces.

The file is a protobuf, a sequence of fields: a varint of (number << 3 | kind), then by kind a varint (0), eight bytes
(1), a varint n and n bytes (2), or four bytes (5). Read here are, by their numbers in sentencepiece_model.proto:

    1 pieces           1 text | 2 score, f32 | 3 type
    2 trainer_spec     3 model_type | 24 treat_whitespace_as_suffix | 40 unk_id | 41 bos_id | 42 eos_id
    3 normalizer_spec  1 name | 2 precompiled_charsmap | 3 add_dummy_prefix | 4 remove_extra_whitespaces
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite

from pygpt._lib import BadFormat
from pygpt.sentence_pieces import Charsmap

from .whole_file import read_whole

MAX_BYTES = 16 << 20  # the largest that is known has 5 MB
MAX_FIELDS = 1 << 20  # which are pieces but for a few
MAX_NUMBER = 42  # of a field that is read within one
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
SIZES = {1: 8, 5: 4}


@dataclass
class SentencepieceModel:
    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # text, score, type as GGUF numbers them
    model_type: str = "Unigram"
    ids: dict[str, int] = field(default_factory=dict)  # "unk", "bos", "eos"; -1: there is none
    normalizer: str = ""
    charsmap: bytes = b""  # what the normalizer replaces; pygpt.sentence_pieces reads it
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    whitespace_as_suffix: bool = False


class _Damaged(Exception):
    pass


class _TooMany(Exception):
    pass


def read_model(path: str) -> SentencepieceModel:
    data = read_whole(path, MAX_BYTES, "a file")
    try:
        return _parse(data)
    except _TooMany:
        raise BadFormat(f"{path}: expected a model of at most {MAX_FIELDS} pieces, found more") from None
    except (_Damaged, UnicodeDecodeError):
        raise BadFormat(
            f"{path}: expected a model of sentencepiece, found bytes that are none; it was cut short or damaged"
        ) from None


def _parse(data: bytes) -> SentencepieceModel:
    model = SentencepieceModel(ids={"unk": 0, "bos": 1, "eos": 2})
    for n, (number, value) in enumerate(_fields(data)):
        if n == MAX_FIELDS:
            raise _TooMany
        if number == 1:
            piece = _message(value)
            score = struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0"), 4))[0]
            model.pieces.append((_bytes(piece.get(1, b"")).decode(), score, _int(piece.get(3, 1))))
        elif number == 2:
            trainer = _message(value)
            kind = _int(trainer.get(3, 1))
            model.model_type = MODEL_TYPES.get(kind, f"type {kind}")
            model.whitespace_as_suffix = bool(_int(trainer.get(24, 0)))
            for name, default, key in (("unk", 0, 40), ("bos", 1, 41), ("eos", 2, 42)):
                id = _int(trainer.get(key, default))
                model.ids[name] = id if id < 1 << 31 else -1  # negative numbers have ten bytes
        elif number == 3:
            normalizer = _message(value)
            model.normalizer = _bytes(normalizer.get(1, b"")).decode()
            model.charsmap = _bytes(normalizer.get(2, b""))
            model.add_dummy_prefix = bool(_int(normalizer.get(3, 1)))
            model.remove_extra_whitespaces = bool(_int(normalizer.get(4, 1)))
    if not model.pieces or not all(1 <= kind <= 6 and isfinite(score) for _, score, kind in model.pieces):
        raise _Damaged
    if model.charsmap and not Charsmap.fits(model.charsmap):
        raise _Damaged
    return model


def _message(value: int | bytes) -> dict[int, int | bytes]:
    """What is read of the message in a field: of those that the file chooses there may be millions."""
    return {number: inside for number, inside in _fields(_bytes(value)) if number <= MAX_NUMBER}


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in SIZES:
            size = SIZES[kind]
        else:
            raise _Damaged
        if size > len(data) - at:
            raise _Damaged
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, position behind it): seven bits per byte, lowest first."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise _Damaged


def _int(value: int | bytes) -> int:
    if type(value) is not int:
        raise _Damaged
    return value


def _bytes(value: int | bytes, size: int | None = None) -> bytes:
    if type(value) is not bytes or size not in (None, len(value)):
        raise _Damaged
    return value
