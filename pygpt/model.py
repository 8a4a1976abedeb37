"""Ids in, logits or ids out: models, sessions and the slices in which the core generates. Knows nothing of text."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import nan
from operator import index
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from pygpt._lib import (
    ON_FULL,
    BadArgument,
    ContextFull,
    File,
    GeneratorHandle,
    ModelHandle,
    ModelInfo,
    NotFound,
    SessionHandle,
    ids_array,
    whole,
)

if TYPE_CHECKING:
    import numpy as np

BUNDLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "shakespeare.gguf")
SLICE = 0.03  # seconds between two pieces of a text


class Sampling(NamedTuple):
    """How the next token is chosen, in this order. Making one with Sampling.checked names what cannot be."""

    repeat_penalty: float = 1.0  # 1: off. Divides the likelihood of tokens among the last repeat_window
    repeat_window: int = 64
    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 200  # 0: off. Ties with the k-th are kept
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    seed: int = 0
    stream: int = 0  # streams of one seed are independent texts
    on_full: str = "jump"

    @classmethod
    def checked(cls, **values: Any) -> Sampling:
        """A Sampling of these values; None stands for the default, and for a seed drawn by the system."""
        given = {name: value for name, value in values.items() if value is not None}
        given.setdefault("seed", int.from_bytes(os.urandom(4), "little"))
        for name, (number, low, high, words) in RANGES.items():
            value = given.get(name, cls._field_defaults[name])
            try:
                given[name] = number(value)
            except (TypeError, ValueError):
                given[name] = nan
            if not low <= given[name] <= high:
                raise BadArgument(f"{name} must be {words}, and {value!r} is not")
        self = cls(**given)
        if self.on_full not in ON_FULL:
            raise BadArgument(f"on_full must be one of {', '.join(ON_FULL)}, and {self.on_full!r} is not")
        return self


RANGES = {  # name: (what makes it a number, lowest, highest, in words)
    "repeat_penalty": (float, 1e-3, 1e3, "a number from 0.001 to 1000"),
    "repeat_window": (index, 0, 2**31 - 1, "a whole number, 0 or more"),
    "temperature": (float, 0, 1e30, "a number, 0 or more"),
    "top_k": (index, 0, 2**31 - 1, "a whole number, 0 (off) or more"),
    "top_p": (float, 1e-9, 1, "above 0 and at most 1"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "seed": (index, 0, 2**64 - 1, "a whole number from 0 to 2^64 - 1"),
    "stream": (index, 0, 2**64 - 1, "a whole number from 0 to 2^64 - 1"),
}


class Session:
    """One sequence of a model and its key/value cache. A context manager; made by Model.session()."""

    def __init__(self, handle: SessionHandle) -> None:
        self._own = handle
        self._stream: weakref.ref[IdStream] | None = None  # what is generated in it

    @property
    def _handle(self) -> SessionHandle:
        stream = self._stream and self._stream()
        if stream and stream.state == "running":
            raise BadArgument("a text is being generated in this session: read it to its end or close it first")
        return self._own

    @property
    def length(self) -> int:
        """Tokens that the sequence holds."""
        return self._handle.length()

    @property
    def ids(self) -> list[int]:
        """The tokens that it holds."""
        return self._handle.ids()

    @property
    def n_ctx(self) -> int:
        """Tokens that it can hold."""
        return self._handle.n_ctx

    def feed(self, ids: Iterable[int]) -> np.ndarray:
        """Appends ids and returns the logits after the last of them: float32 [n_vocab].

        Raises pygpt.Error, and appends nothing, if the context cannot hold them or an id is none of the model's.
        """
        import numpy as np

        tokens = ids_array(ids)
        if not tokens:
            raise BadArgument("feed needs at least one id")
        logits = np.empty(self._handle.n_vocab, np.float32)
        self.append(tokens, len(tokens) - 1, logits)
        return logits

    def append(self, ids: array, first: int, logits: np.ndarray) -> None:
        """feed without an allocation: ids is an array("i"), logits after ids[first:] go to float32 [n, n_vocab]."""
        self._handle.append(ids, first, logits)

    def append_each(self, ids: array, logits: np.ndarray) -> None:
        """Appends one id after the other, as generating does; each one's logits go to the same float32 [n_vocab]."""
        self._handle.append_each(ids, logits)

    def generate(
        self,
        ids: Iterable[int],
        max_tokens: int | None,
        sampling: Sampling,
        banned: Iterable[int] = (),
        stop: Iterable[int] = (),
        tools: Tools | None = None,
    ) -> IdStream:
        """Appends ids, at least one, and continues: an iterator of lists of ids, one list about every 0.03 s.

        tools: ids after which functions say what follows. They get all that has been generated, the id included, and
        what they return is part of the text.
        Until it has ended or is closed the session is its own. Afterwards the session holds the whole text, or what
        on_full has kept of it; the last token may not have been evaluated yet.
        """
        tokens = ids_array(ids)
        if self.length + len(tokens) > self.n_ctx:
            raise ContextFull(
                f"{len(tokens)} tokens after {self.length} do not fit into a context of {self.n_ctx}: shorten the text"
            )
        stream = IdStream(self._handle, tokens, max_tokens, sampling, banned, stop, tools=tools)
        self._stream = weakref.ref(stream)
        return stream

    def rewind(self, n: int) -> None:
        """Forgets all but the first n tokens."""
        self._handle.rewind(n)

    def fork(self) -> Session:
        """A second session that holds the same tokens and goes its own way."""
        return Session(self._handle.fork())

    def close(self) -> None:
        """Frees the cache. Leaving a with block does so, and so does forgetting the session."""
        self._own.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IdModel:
    """A model that speaks token ids. A context manager; immutable, and safe to share between threads.

    path: a GGUF file, by default the bundled Shakespeare. threads: by default every processor this process may use.
    """

    def __init__(self, path: str | PathLike[str] | None = None, threads: int | None = None) -> None:
        if path is None and not os.path.exists(BUNDLED):
            raise NotFound("this installation has no bundled model: name a model file")
        self._handle = ModelHandle(BUNDLED if path is None else path, threads)

    @property
    def info(self) -> ModelInfo:
        """Architecture, shapes, threads, parameters and the bytes that a decoded token reads."""
        return self._handle.info

    @property
    def path(self) -> str:
        """The file that was opened."""
        return self._handle.path

    def file(self) -> File:
        """The model's file: its keys and tensors."""
        return self._handle.file()

    def logits(self, ids: Iterable[int]) -> np.ndarray:
        """The logits after every one of ids: float32 [len(ids), n_vocab].

        Raises pygpt.Error if they are more than the context holds or one of them is none of the model's.
        """
        import numpy as np

        tokens = ids_array(ids)
        self._fits(len(tokens))
        logits = np.empty((len(tokens), self.info.n_vocab), np.float32)
        if tokens:
            with Session(SessionHandle(self._handle, len(tokens))) as session:
                session.append(tokens, 0, logits)
        return logits

    def session(self, n_ctx: int | None = None) -> Session:
        """A new, empty session that holds up to n_ctx tokens, by default the model's context."""
        return Session(SessionHandle(self._handle, n_ctx))

    def generate_ids(
        self,
        prompt: Iterable[int],
        max_tokens: int | None,
        sampling: Sampling,
        banned: Iterable[int] = (),
        stop: Iterable[int] = (),
    ) -> IdStream:
        """Continues ids: an iterator of lists of ids, one list about every 0.03 s."""
        tokens = ids_array(prompt)
        self._fits(len(tokens))
        return IdStream(SessionHandle(self._handle), tokens, max_tokens, sampling, banned, stop, owns=True)

    def _fits(self, n: int) -> None:
        if n > self.info.n_ctx:
            raise ContextFull(f"{n} tokens do not fit into this model's context of {self.info.n_ctx}: shorten the text")

    def close(self) -> None:
        """Lets go of the file. Sessions that are still open keep it until they are closed too."""
        self._handle.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Tools = Mapping[int, Callable[[list[int]], list[int]]]  # an id that calls one: what follows it, by all ids so far


class IdStream:
    """A text as it grows: lists of ids. state: "running", "length", "end" (an id that ends it) or "context"."""

    def __init__(
        self,
        session: SessionHandle,
        prompt: array,
        max_tokens: int | None,
        sampling: Sampling,
        banned: Iterable[int],
        stop: Iterable[int],
        owns: bool = False,
        tools: Tools | None = None,
    ) -> None:
        """owns: the session is closed with the stream."""
        if not prompt:
            raise BadArgument("generating needs at least one id to start from")
        if max_tokens is not None:
            max_tokens = whole("max_tokens", max_tokens, 1)
        self.sampling = sampling
        self.n_prompt = len(prompt)
        self.n_generated = 0
        self.state = "running"
        self._limit = max_tokens
        self._prompt = prompt
        self._session = session if owns else None
        self._tools = tools or {}
        self._told: list[int] = []  # what has been generated, for the tools
        lists = {"banned": ids_array(banned), "stop": ids_array([*stop, *self._tools])}
        self._core = GeneratorHandle(session, **lists, **sampling._asdict())

    def read_prompt(self) -> None:
        """Evaluates the prompt. Iterating does it otherwise."""
        prompt, self._prompt = self._prompt, array("i")
        if prompt:
            self._core.feed(prompt)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        self.read_prompt()
        while self.state == "running":
            left = 1 << 30 if self._limit is None else self._limit - self.n_generated
            ids = self._core.next(left, SLICE if self.n_generated else 0.0)
            if not self._core.running():
                self.state = "context" if self._core.ended_by_context() else "end"
            if self._tools:
                ids = self._with_tools(ids)
            self.n_generated += len(ids)
            if self.state == "running" and self._limit is not None and self.n_generated >= self._limit:
                self.state = "length"
            if ids:
                return ids
        self.close()
        raise StopIteration

    def _with_tools(self, ids: list[int]) -> list[int]:
        """The ids, and what a tool adds if it was called: then the text goes on."""
        self._told += ids
        call = self._core.end_id() if self.state == "end" else -1
        if call not in self._tools:
            return ids
        added = [call, *self._tools[call]([*self._told, call])]
        try:
            self._core.feed(ids_array(added))
        except ContextFull:
            self.state = "context"
            return ids
        self._told += added
        self.state = "running"
        return ids + added

    def close(self) -> None:
        """Frees the core's side of it."""
        self._core.close()
        if self._session:
            self._session.close()
        if self.state == "running":
            self.state = "closed"
