"""A conversation with a model: its file's chat template turns messages into ids, and what a session still holds is not
read again. Knows no terminal.

What people write in messages stays text, also where it looks like a control token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from pygpt._lib import BadArgument, BadFormat, ContextFull, Unsupported, whole
from pygpt.calculator import calculator
from pygpt.chat_template import AGAIN, Refusal, Template
from pygpt.generate import Generation, Model
from pygpt.model import IdStream, Sampling
from pygpt.tokenizer import PieceTokenizer, Tokenizer, cut

ROLES = ("system", "user", "assistant")

USUAL: dict[str, dict[str, Any]] = {  # what an architecture's authors chat with, where generate's defaults differ
    "nanochat": {"temperature": 0.6, "top_k": 50, "max_tokens": 256},
}
MAX_TOKENS = 1024  # of an answer
ANSWER = 4  # an answer gets max_tokens of the context, or one part in so many if that is less
SPARE = 4  # when old messages are dropped, one part in so many of what the context has for messages becomes free

# ---- messages to ids -------------------------------------------------------------------------------------------------

# Code points that Unicode keeps for such uses.
BREAK = "\ufdd0"  # stands behind the first character of what looks like a control token and is none, or before its only
PLACED = "\ufdd1"  # ends the system message, to be found again in what the template made
PARTS = 1024  # texts between control tokens whose ids are remembered


class Message(NamedTuple):
    """content: as it was written; marked: with BREAK and PLACED in it, as the template gets it."""

    role: str
    content: str
    marked: str


class Format:
    """How a model's file wants a conversation to look. unknown: what to do with characters the vocabulary lacks."""

    def __init__(self, model: Model, unknown: str = "error") -> None:
        template = model.file().keys.get("tokenizer.chat_template")
        tokenizer = model.tokenizer
        if not isinstance(template, str) or not template.strip() or not isinstance(tokenizer, PieceTokenizer):
            raise Unsupported(
                f"{model.path}: has no chat template, so the model was not made for conversations: let it continue "
                "texts by `pygpt generate`"
            )
        self._path = model.path
        self.tokenizer = tokenizer
        self.stop = tokenizer.stop_ids()
        ends = {self._spelled(id): id for id in (tokenizer.bos, tokenizer.eos, *self.stop) if id is not None}
        ends = {text: id for text, id in ends.items() if text and "\ufffd" not in text}
        self._special = {**tokenizer.template_tokens, **ends}
        self._reserved = {t: id for t, id in self._special.items() if t in ends or t not in tokenizer.text_tokens}
        self._spellings = {id: text for text, id in self._reserved.items()}
        self._plain = lru_cache(PARTS)(lambda part, begins: self._encode_plain(part, unknown, begins))
        names = {"bos_token": self._spelled(tokenizer.bos), "eos_token": self._spelled(tokenizer.eos)}
        self._template = Template(template, model.path, **names, add_generation_prompt=True, tools=None, documents=None)
        self._system_apart = True  # until the template will not have it so

    def _spelled(self, id: int | None) -> str:
        return "" if id is None else self.tokenizer.token_bytes(id).decode("utf-8", "replace")

    def message(self, role: str, content: str) -> Message:
        """Raises pygpt.Error for what is no text, or none that the vocabulary can spell."""
        if not isinstance(content, str):
            raise BadArgument(f"a message is a str, and {repr(content)[:60]} is none")
        marked = self._marked(content)
        self._plain(marked, False)
        if role == "system":
            end = len(marked.rstrip())
            marked = marked[:end] + PLACED + marked[end:]
        return Message(role, content, marked)

    def said(self, content: str, ids: Iterable[int], after: Sequence[int]) -> Message:
        """The model's own message. Control tokens that it chose stay what they are, others that it spelled are text.

        after: the ids behind which it stands, which decide whether a space at its begin is a part of the text.
        """
        marked, before = [], list(after[-2:])
        for is_control, run in groupby(ids, self._spellings.__contains__):
            found = list(run)
            if is_control:
                marked += [self._spellings[id] for id in found]
            else:
                marked.append(self._marked(self.tokenizer.text_behind(found, before)))
            before = [*before, *found][-2:]
        return Message("assistant", content, "".join(marked))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the next answer begins."""
        text = self._text(messages)
        ids: list[int] = []
        for start, part, id in cut(text, self._special, self.tokenizer.borders):
            is_text = id is None or text[start - 1 : start] == BREAK
            ids += self._plain(part, start == 0) if is_text else [id]
        if not ids:
            raise BadFormat(f"{self._path}: its chat template makes nothing of the conversation; {AGAIN}")
        if self.tokenizer.add_bos and self.tokenizer.bos is not None and ids[:1] != [self.tokenizer.bos]:
            ids.insert(0, self.tokenizer.bos)
        return ids

    def _marked(self, text: str) -> str:
        """A text in which nothing can be taken for a control token."""
        text = text.replace(BREAK, "").replace(PLACED, "")
        found = [token for token in self._reserved if token in text]
        if longer := "|".join(re.escape(token) for token in found if len(token) > 1):
            text = re.sub(f"(?=(?:{longer}))(.)", rf"\1{BREAK}", text, flags=re.DOTALL)  # also where they overlap
        if single := "|".join(re.escape(token) for token in found if len(token) == 1):
            text = re.sub(f"({single})", rf"{BREAK}\1", text)
        return text

    def _encode_plain(self, part: str, unknown: str, begins: bool) -> tuple[int, ...]:
        part = part.replace(PLACED, "")
        ids = self.tokenizer.encode_part(part.replace(BREAK, ""), unknown, begins)
        if BREAK in part and not self._spellings.keys().isdisjoint(ids):  # a file may have control tokens that are text
            pieces = enumerate(part.split(BREAK))
            ids = [id for i, piece in pieces for id in self.tokenizer.encode_part(piece, unknown, begins and not i)]
        return tuple(ids)

    def _text(self, messages: Sequence[Message]) -> str:
        """What the template makes of messages. Where it has no place for a system message, the first user says it."""
        if messages[0].role != "system":
            return self._render(messages)
        refusal = None
        if self._system_apart:
            try:
                text = self._render(messages)
                if PLACED in text:
                    return text
            except Refusal as error:
                refusal = error
        try:
            text = self._render(list(without_system(messages)))
        except Refusal as error:
            raise refusal or error from None
        self._system_apart = False
        return text

    def _render(self, messages: Iterable[Message]) -> str:
        return self._template.render([{"role": message.role, "content": message.marked} for message in messages])


def without_system(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages behind the system's, which goes before the first of a user, with a blank line between."""
    system: Message | None = messages[0]
    for message in messages[1:]:
        if system and message.role == "user":
            message = message._replace(marked=f"{system.marked}\n\n{message.marked}")
            system = None
        yield message


# ---- the conversation ------------------------------------------------------------------------------------------------


class Heard:
    """A stream of text behind the ids `after` that remembers its ids."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]) -> None:
        self._stream = tokenizer.stream(after)
        self.after, self.ids = after, list[int]()

    def feed(self, ids: Iterable[int]) -> str:
        ids = list(ids)
        self.ids += ids
        return self._stream.feed(ids)

    def finish(self) -> str:
        return self._stream.finish()


class Answer(Generation):
    """An answer as it grows: an iterator of str pieces, with what a Generation tells.

    text: what has come so far; n_cached: tokens of the conversation that were not read again; n_dropped: old messages
    that the context had no more room for.
    """

    def __init__(self, source: IdStream, heard: Heard, n_cached: int, n_dropped: int) -> None:
        super().__init__(source, heard, [])
        self.heard = heard
        self.text = ""
        self.n_cached, self.n_dropped = n_cached, n_dropped

    def __next__(self) -> str:
        piece = super().__next__()
        self.text += piece
        return piece


class Chat:
    """A conversation. A context manager; for one thread at a time.

    with pygpt.Model("model.gguf") as model, pygpt.Chat(model, system="Answer in one sentence.") as chat:
        for piece in chat.send("Why is the sky blue?"):
            print(piece, end="", flush=True)

    n_dropped: the oldest messages, the system's not counted, that the context has no more room for. They stay in
    `messages`, but the model does not see them.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        *,
        max_tokens: int | None = None,
        n_ctx: int | None = None,
        unknown: str = "error",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        seed: int | None = None,
    ) -> None:
        """max_tokens: of an answer, by default 1024; n_ctx: tokens of a conversation, by default the model's context.
        unknown: "skip" drops characters that the vocabulary lacks. The others are those of Model.generate, and so are
        their defaults, but a nanochat gets 256 tokens at temperature 0.6 from the likeliest 50, as its authors have it.

        Raises pygpt.Error for a model that was not made for conversations, or whose template is wrong.
        """
        usual = USUAL.get(model.info.architecture, {})
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
        given |= {"repeat_penalty": repeat_penalty, "max_tokens": max_tokens}
        settings = {"max_tokens": MAX_TOKENS} | usual | {k: v for k, v in given.items() if v is not None}
        self._max_tokens = whole("max_tokens", settings.pop("max_tokens"), 1)
        self._sampling = Sampling.checked(**settings, on_full="stop")
        self._format = Format(model, unknown)
        self._banned = self._format.tokenizer.banned_ids(model.info.n_vocab)
        self._tools = calculator(self._format.tokenizer)
        self._history: list[Message] = []
        self._answer: Answer | None = None
        self._n_sent = 0  # the answers that were begun: each has random numbers of its own
        self.n_dropped = 0
        self.set_system(system)
        self._session = model.session(n_ctx)
        self._room = self._session.n_ctx - min(self._max_tokens, max(1, self._session.n_ctx // ANSWER))

    @property
    def seed(self) -> int:
        """What to pass for the same answers again, to the same calls."""
        return self._sampling.seed

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, the system message first if there is one: a list of {"role", "content"}, made anew.

        Assigning such a list takes another conversation up. Raises pygpt.Error, and changes nothing, if it is none.
        """
        if self._answer and self._answer.finish:
            self._settle()
        messages = [{"role": m.role, "content": m.content} for m in (*self._system, *self._history)]
        if self._answer and self._answer.text:
            messages.append({"role": "assistant", "content": self._answer.text})
        return messages

    @messages.setter
    def messages(self, messages: Iterable[Mapping[str, str]]) -> None:
        found = [self._checked(i, message) for i, message in enumerate(messages)]
        self.reset()
        n_system = sum(message.role == "system" for message in found)
        self._system, self._history = tuple(found[:n_system]), found[n_system:]

    def _checked(self, i: int, message: Any) -> Message:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise BadArgument(
                f"message {i + 1} must have a content and a role, which is one of {', '.join(ROLES)}; "
                f"it is {str(message)[:60]!r}"
            )
        if role == "system" and i:
            raise BadArgument(f"only the first message may be the system's, and message {i + 1} is")
        return self._format.message(role, content)

    def set_system(self, text: str | None) -> None:
        """Another system message from the next answer on; None or "" for none."""
        self._settle()
        self._system = (self._format.message("system", text),) if text else ()

    def reset(self) -> None:
        """Begins anew, with the same system message."""
        self._settle()
        self._history, self.n_dropped = [], 0

    def send(self, text: str) -> Answer:
        """Says something and gives the answer, an iterator of str pieces.

        An answer that is closed, or left for another message, stays in the conversation as far as it has come; if
        nothing has come, the message is taken back too. Raises pygpt.Error, and changes nothing, for text that
        does not fit into the context or that the vocabulary or the template cannot have.
        """
        self._settle()
        history = [*self._history, self._format.message("user", text)]
        ids, n_dropped = self._fitting(history)
        held = self._session.ids
        n_cached = min(n_common(held, ids), len(ids) - 1)
        self._session.rewind(n_cached)
        sampling = self._sampling._replace(stream=self._n_sent + 1)
        source = self._session.generate(
            ids[n_cached:], self._max_tokens, sampling, self._banned, self._format.stop, self._tools
        )
        heard = Heard(self._format.tokenizer, ids)
        self._answer = Answer(source, heard, n_cached, n_dropped - self.n_dropped)
        self._history, self.n_dropped, self._n_sent = history, n_dropped, self._n_sent + 1
        return self._answer

    def _fitting(self, history: list[Message]) -> tuple[list[int], int]:
        """The ids of as much of the conversation as there is room for, and how many messages that leaves out."""

        def encode(n_dropped: int) -> list[int]:
            return self._format.encode([*self._system, *history[n_dropped:]])

        ids = encode(self.n_dropped)
        if len(ids) <= self._room:
            return ids, self.n_dropped
        last = len(history) - 1
        turns = [i for i in range(self.n_dropped + 1, last) if history[i].role == "user"]
        goal = self._room - self._room // SPARE
        enough = bisect_left(turns, True, key=lambda i: len(encode(i)) <= goal)
        n_dropped = [*turns, last][enough]
        ids = encode(n_dropped)
        if len(ids) > self._room:
            n_ctx = self._session.n_ctx
            raise ContextFull(
                f"the message makes {len(ids)} tokens, and this conversation's context of {n_ctx} has {self._room} for "
                f"it, because {n_ctx - self._room} are for the answer: shorten it"
            )
        return ids, n_dropped

    def _settle(self) -> None:
        """Takes the last answer into the history."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        answer.close()
        if answer.text or answer.finish != "closed":
            self._history.append(self._format.said(answer.text, answer.heard.ids, answer.heard.after))
        else:
            self._history.pop()
            self.n_dropped = min(self.n_dropped, len(self._history))

    def close(self) -> None:
        """Frees the cache. Leaving a with block does so."""
        self._settle()
        self._session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905
