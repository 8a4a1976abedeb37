"""Text in, text out: pygpt.Model. Pieces are whole characters, and stop texts end them wherever their borders fall."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from os import PathLike
from time import perf_counter
from typing import Any

from pygpt._lib import BadArgument, BadFormat, ids_array
from pygpt.model import IdModel, IdStream, Sampling
from pygpt.tokenizer import TextStream, Tokenizer


class Model(IdModel):
    """A model and its tokenizer.

    with pygpt.Model("model.gguf") as model:
        for piece in model.generate("ROMEO:", max_tokens=200):
            print(piece, end="", flush=True)
    """

    def __init__(self, path: str | PathLike[str] | None = None, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file describes."""
        with self._lock:
            if self._tokenizer is None:
                found = Tokenizer.from_keys(self.file().keys)
                if found.n_vocab > self.info.n_vocab:
                    raise BadFormat(
                        f"{self.path}: its vocabulary has {found.n_vocab} entries, but its model only "
                        f"{self.info.n_vocab} ids; convert the checkpoint again"
                    )
                self._tokenizer = found
            return self._tokenizer

    def generate(
        self,
        prompt: str | Iterable[int] = "",
        max_tokens: int | None = 500,
        *,
        temperature: float = 0.8,
        top_k: int | None = 200,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        on_full: str = "jump",
        unknown: str = "error",
        stream: int = 0,
    ) -> Generation:
        """Continues a text (or token ids) and yields what follows in pieces, as they come.

        max_tokens: None goes on until the text ends.
        temperature: 0 always takes the likeliest token. Off are top_k None or 0, top_p 1, min_p 0 and repeat_penalty 1.
        seed: the same one gives the same text with any number of threads; None draws one.
        stop: texts that end it and are left out.
        on_full, when the context is full: "jump" keeps the last half, "exact" evaluates the last n_ctx tokens anew for
        every token as nanoGPT does, "stop" ends.
        unknown: "skip" drops characters of the prompt that the vocabulary lacks.
        stream: texts of one seed that differ.

        Raises pygpt.Error, which is a ValueError here, at once for what cannot be: also a prompt beyond the context.
        """
        sampling = Sampling.checked(
            temperature=temperature,
            top_k=top_k or 0,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
            stream=stream,
            on_full=on_full,
        )
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if not all(isinstance(text, str) and text for text in stops):
            raise BadArgument(f"stop texts must be str and not empty, and one of {stops!r} is not")
        tokenizer = self.tokenizer
        ids = tokenizer.encode(prompt, unknown=unknown) if isinstance(prompt, str) else prompt
        tokens = ids_array(ids) or tokenizer.start_ids()
        banned = tokenizer.banned_ids(self.info.n_vocab)
        if len(banned) == self.info.n_vocab:
            raise BadFormat(f"{self.path}: its vocabulary has no text for any id; convert the checkpoint again")
        source = self.generate_ids(tokens, max_tokens, sampling, banned, tokenizer.stop_ids())
        return Generation(source, tokenizer.stream(tokens), stops)

    def complete(self, prompt: str | Iterable[int] = "", max_tokens: int | None = 500, **settings: Any) -> str:
        """What generate yields, whole."""
        return "".join(self.generate(prompt, max_tokens, **settings))


class Generation:
    """A text as it grows: an iterator of str pieces, each of them whole characters.

    seed: what to pass for the same text again; n_prompt, n_generated: tokens; prompt_seconds, seconds: their times;
    finish: "length", "stop" (a stop text), "end" (the end-of-text token), "context", "closed", or None while it runs.
    Tokens are made ahead of the text, for 0.03 s at most: with stop texts n_generated counts some that are not shown.
    """

    def __init__(self, source: IdStream, text: TextStream, stops: list[str]) -> None:
        self._source = source
        self._pieces = self._run(text, StopFilter(stops))
        self.seed = source.sampling.seed
        self.n_prompt = source.n_prompt
        self.prompt_seconds = 0.0
        self.seconds = 0.0
        self.finish: str | None = None

    @property
    def n_generated(self) -> int:
        return self._source.n_generated

    def _run(self, text: TextStream, stops: StopFilter) -> Iterator[str]:
        begin = perf_counter()
        self._source.read_prompt()
        self.prompt_seconds = perf_counter() - begin
        while True:
            begin = perf_counter()
            ids = next(self._source, None)
            self.seconds += perf_counter() - begin
            piece = text.finish() if ids is None else text.feed(ids)
            piece = stops.feed(piece)
            if ids is None and not stops.hit:
                piece += stops.finish()
            if piece:
                yield piece
            if stops.hit or ids is None:
                break
        self.finish = "stop" if stops.hit else self._source.state
        self._source.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends it early and frees what it holds."""
        self._pieces.close()
        self._source.close()
        self.finish = self.finish or self._source.state


class StopFilter:
    """Passes text on up to the first stop text, holding back what might become one."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def feed(self, piece: str) -> str:
        if not self._stops:
            return piece
        text = self._held + piece
        found = [i for i in (text.find(stop) for stop in self._stops) if i >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that stop begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
