"""Text to token ids and back, built from what a model file holds: a class per kind of vocabulary, a row each in KINDS.

Knows nothing of models. What the file says is not trusted: a vocabulary that contradicts itself is an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar

from pygpt._lib import BadArgument, BadFormat, File, Unsupported
from pygpt.vocabulary import BYTE_OF, CONTROL, UNUSED, USER_DEFINED

SKIP_HINT = 'leave it out, or drop such characters with unknown="skip" (--unknown skip)'


class Tokenizer:
    """What a model file knows about text. Make one with Tokenizer.from_file; the kinds are subclasses.

    kind: "character", "bpe" or "none"; n_vocab: ids below this have a meaning.
    """

    kind: ClassVar[str] = "none"
    n_vocab: int = 0

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

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.add_bos = keys.get("tokenizer.ggml.add_bos_token") is True
        self.bos = self._id(keys, "tokenizer.ggml.bos_token_id")
        self.eos = self._id(keys, "tokenizer.ggml.eos_token_id")

    def _id(self, keys: Mapping[str, Any], name: str) -> int | None:
        value = keys.get(name)
        return value if type(value) is int and 0 <= value < self.n_vocab else None

    def encode(self, text: str, add_special: bool = True, unknown: str = "error") -> list[int]:
        """The ids of a text. Control tokens that are spelled out in it stay plain text.

        add_special: with the start token, where the model wants one.
        unknown: "error" names the first character that the vocabulary lacks and its position, "skip" drops such.
        """
        if unknown not in ("error", "skip"):
            raise BadArgument(f"unknown is 'error' or 'skip', and {unknown!r} is neither")
        ids = self._encode(text, unknown == "skip")
        return [self.bos, *ids] if add_special and self.add_bos and self.bos is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; control tokens are spelled out."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self) -> TextStream:
        """A decoder for ids that come one after the other."""
        return TextStream(self.token_bytes)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for, perhaps a part of a character."""
        raise BadArgument("this model has no vocabulary: it speaks token ids only")

    def banned_ids(self, n_vocab: int) -> list[int]:
        """Ids of a model with n_vocab that no text can produce: padding that was never trained."""
        return []

    def start_ids(self) -> list[int]:
        """What stands for an empty prompt: a newline for characters, the end of the text before for BPE."""
        raise BadArgument("this model has no vocabulary: it needs token ids to start from")

    def stop_ids(self) -> list[int]:
        """Ids that end a text."""
        return [] if self.eos is None else [self.eos]

    def _encode(self, text: str, skip: bool) -> list[int]:
        raise BadArgument("this model has no vocabulary: it speaks token ids only")


class CharacterTokenizer(Tokenizer):
    """Every id is one character, as in nanoGPT's shakespeare_char."""

    kind = "character"

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.characters = _strings(keys, "pygpt.tokenizer.characters")
        self.n_vocab = len(self.characters)
        self._ids = {text: id for id, text in enumerate(self.characters) if text}
        if len(self._ids) < sum(map(bool, self.characters)):
            raise BadFormat("pygpt.tokenizer.characters: expected each character once, found one twice; convert again")
        super().__init__(keys)

    def token_bytes(self, id: int) -> bytes:
        return _at(self.characters, id).encode("utf-8", "replace")

    def banned_ids(self, n_vocab: int) -> list[int]:
        return [id for id in range(n_vocab) if id >= self.n_vocab or not self.characters[id]]

    def start_ids(self) -> list[int]:
        return [self._ids.get("\n", 0)]

    def _encode(self, text: str, skip: bool) -> list[int]:
        ids = self._ids
        if skip:
            return [ids[c] for c in text if c in ids]
        try:
            return [ids[c] for c in text]
        except KeyError as error:
            raise _unknown(text, text.index(error.args[0])) from None


class BPETokenizer(Tokenizer):
    """GPT-2's byte-level byte-pair encoding, run by the tokenizers library."""

    kind = "bpe"

    def __init__(self, keys: Mapping[str, Any]) -> None:
        pre = keys.get("tokenizer.ggml.pre")
        if pre != "gpt-2":
            raise Unsupported(f"the file's tokenizer splits text by the rule {pre!r}; known is 'gpt-2'")
        self.tokens = _strings(keys, "tokenizer.ggml.tokens")
        self.n_vocab = len(self.tokens)
        self._merges = _strings(keys, "tokenizer.ggml.merges")
        self._types = keys.get("tokenizer.ggml.token_type", [1] * self.n_vocab)
        if not isinstance(self._types, list) or len(self._types) != self.n_vocab or {*map(type, self._types)} - {int}:
            raise BadFormat(f"tokenizer.ggml.token_type is no list of {self.n_vocab} numbers, one per token")
        if not all(0 < merge.find(" ") < len(merge) - 1 for merge in self._merges):
            raise BadFormat("tokenizer.ggml.merges: expected two tokens with a space between in each entry")
        self._fast: Any = None
        super().__init__(keys)

    def token_bytes(self, id: int) -> bytes:
        token = _at(self.tokens, id)
        if self._types[id] in (CONTROL, USER_DEFINED):
            return token.encode("utf-8", "replace")
        try:
            return bytes(BYTE_OF[c] for c in token)
        except KeyError:  # not spelled in byte-level BPE's alphabet: it can only mean itself
            return token.encode("utf-8", "replace")

    def banned_ids(self, n_vocab: int) -> list[int]:
        return [id for id in range(n_vocab) if id >= self.n_vocab or self._types[id] == UNUSED]

    def start_ids(self) -> list[int]:
        if self.eos is None and self.bos is None:
            raise BadArgument("the prompt is empty, and this model has no token that texts start from")
        return [self.bos if self.eos is None else self.eos]

    def _encode(self, text: str, skip: bool) -> list[int]:
        if self._fast is None:
            self._fast, self._missing = self._build()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if not skip:
                raise _unknown(text, error.start) from None
            text = text.encode("utf-8", "ignore").decode()
        if self._missing:  # a vocabulary without all 256 bytes would drop what it lacks without a word
            lacking = [i for i, c in enumerate(text) if self._missing.intersection(c.encode())]
            if lacking and not skip:
                raise _unknown(text, lacking[0])
            dropped = set(lacking)
            text = "".join(c for i, c in enumerate(text) if i not in dropped)
        return self._fast.encode(text, add_special_tokens=False).ids

    def _build(self) -> tuple[Any, set[int]]:
        """(the encoder, bytes that it has no token for)"""
        from tokenizers import AddedToken, models, pre_tokenizers
        from tokenizers import Tokenizer as Fast

        vocabulary = {token: id for id, token in enumerate(self.tokens) if self._types[id] != UNUSED}
        merges = [tuple(merge.split(" ", 1)) for merge in self._merges]
        try:
            fast = Fast(models.BPE(vocabulary, merges))
        except Exception as error:  # the library raises nothing narrower
            raise BadFormat(f"the file's merges contradict its vocabulary: {error}") from None
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        added = [token for id, token in enumerate(self.tokens) if self._types[id] == USER_DEFINED and token]
        fast.add_tokens([AddedToken(token, normalized=False) for token in added])
        return fast, {byte for letter, byte in BYTE_OF.items() if letter not in vocabulary}


class TextStream:
    """Ids in, complete characters out: bytes wait until the character that they belong to is whole."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete; those that are no UTF-8 are U+FFFD."""
        return self._decoder.decode(b"".join(map(self._token_bytes, ids)))

    def finish(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


KINDS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "none": Tokenizer,
    "character": CharacterTokenizer,
    "gpt2": BPETokenizer,
}


def _strings(keys: Mapping[str, Any], name: str) -> list[str]:
    value = keys.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or not value:
        found = "is missing" if value is None else "is something else"
        raise BadFormat(f"a tokenizer of this kind needs the key {name!r}, a list of strings, and it {found}")
    return value


def _at(texts: list[str], id: int) -> str:
    if not 0 <= id < len(texts):
        raise BadArgument(f"the vocabulary holds ids 0 to {len(texts) - 1}, and {id} is none of them")
    return texts[id]


def _unknown(text: str, position: int) -> BadArgument:
    c = text[position]
    return BadArgument(f"the vocabulary lacks {c!r} (U+{ord(c):04X}), character {position} of the text: {SKIP_HINT}")
