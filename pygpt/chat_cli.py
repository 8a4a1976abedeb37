"""`pygpt chat`: lines in, answers out as they come. On a terminal with a prompt, from a pipe without; answers alone go
to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

PROMPT, MORE = "> ", "... "
TWICE = 1.0  # seconds between two interrupts that end the program when nobody sits at a terminal
LARGEST = 1 << 26  # bytes of a conversation that is loaded


class Leave(Exception):
    """The conversation is over."""


def run(o: argparse.Namespace) -> None:
    from pygpt.chat import Chat
    from pygpt.cli import open_model

    names = "max_tokens n_ctx unknown temperature top_k top_p min_p repeat_penalty seed".split()
    with open_model(o.model, o.threads) as model:
        with Chat(model, o.system, **{name: getattr(o, name) for name in names}) as chat:
            Dialog(chat, o.stats).run()


class Dialog:
    """Somebody's side of a conversation."""

    def __init__(self, chat: Any, stats: bool) -> None:
        from pygpt.cli import say, write

        self.chat, self.stats = chat, stats
        self.say, self.write = say, write
        self.at_terminal = is_terminal(sys.stdin)
        self.read_line = editable_line if self.at_terminal and is_terminal(sys.stdout) else plain_line
        self.known: set[str] = set()  # files that may be written again without asking
        self.interrupted = -TWICE

    def run(self) -> None:
        """Until there is no more input. From a pipe, errors are told by the exit status too."""
        from pygpt._lib import Error

        if self.at_terminal:
            self.say("/help lists the commands, Ctrl-D leaves")
        failed = False
        while True:
            try:
                self.take(self.read())
            except Leave:
                break
            except Error as error:
                self.say(f"error: {error}")
                failed = True
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                self.end_line()
                self.say("Ctrl-D leaves")
        if failed and not self.at_terminal:
            sys.exit(1)

    def read(self) -> str:
        """A message, or a command: a line, and those behind it while they end in a backslash."""
        prompt = PROMPT if self.at_terminal else ""
        text = self.read_line(prompt)
        if text is None:
            self.end_line()
            raise Leave
        while text.endswith("\\"):
            line = self.read_line(MORE if prompt else "")
            text = text[:-1] + ("" if line is None else "\n" + line)
            if line is None:
                break
        return text

    def take(self, text: str) -> None:
        from pygpt._lib import BadArgument

        if text.startswith("//") or not text.startswith("/"):
            return self.answer(text.removeprefix("/")) if text.strip() else None
        name, _, argument = text.partition(" ")
        if name not in COMMANDS:
            raise BadArgument(
                f"there is no command {name!r}: /help lists them, and a message that begins with a slash needs two"
            )
        return COMMANDS[name][0](self, argument.strip())

    def answer(self, text: str) -> None:
        answer = self.chat.send(text)
        if answer.n_dropped:
            self.say(
                f"note: the context is full, and the model no longer sees the oldest {self.chat.n_dropped} messages"
            )
        shown = ""
        try:
            with interrupts() as asked:
                for piece in answer:
                    piece = piece if shown else piece.lstrip()
                    shown = piece or shown
                    self.write(piece)
                    if asked:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            answer.close()
            self.interrupt()
            if shown.endswith("\n"):
                self.end_line()  # the terminal shows ^C there
        finally:
            if not shown.endswith("\n"):
                self.write("\n")
        if answer.finish == "length":
            self.say(f"note: the answer is cut after {answer.n_generated} tokens; -n allows more")
        elif answer.finish == "context":
            self.say("note: the answer is cut because the context is full; ask for the rest, or begin anew by /reset")
        if self.stats:
            self.say(stats(answer))

    def interrupt(self) -> None:
        """Ends the answer. At a terminal that is all; elsewhere a second one soon after the first ends the program."""
        now = monotonic()
        if not self.at_terminal and now - self.interrupted < TWICE:
            raise KeyboardInterrupt
        self.interrupted = now

    def end_line(self) -> None:
        if self.at_terminal and sys.stderr is not None:
            print(file=sys.stderr, flush=True)

    # ---- commands

    def reset(self, _: str) -> None:
        self.chat.reset()

    def set_system(self, text: str) -> None:
        self.chat.set_system(text)

    def save(self, path: str) -> None:
        path = named("/save", path)
        save(path, self.chat.messages, replace=path in self.known)
        self.known.add(path)
        self.say(f"{len(self.chat.messages)} messages are in {path!r}")

    def load(self, path: str) -> None:
        path = named("/load", path)
        load(path, self.chat)
        self.known.add(path)
        self.say(f"{len(self.chat.messages)} messages from {path!r}")

    def help(self, _: str) -> None:
        for name, (_, argument, what) in COMMANDS.items():
            self.say(f"{name} {argument}".ljust(16) + what)
        self.say("A line that ends in a backslash goes on in the next. //text sends /text. Ctrl-C stops an answer.")

    def leave(self, _: str) -> None:
        raise Leave


COMMANDS: dict[str, tuple[Callable[[Dialog, str], None], str, str]] = {
    "/help": (Dialog.help, "", "shows this"),
    "/reset": (Dialog.reset, "", "forgets what was said, but not the system message"),
    "/system": (Dialog.set_system, "TEXT", "another system message; without TEXT none"),
    "/save": (Dialog.save, "FILE", "writes the conversation as JSON"),
    "/load": (Dialog.load, "FILE", "goes on with a conversation that was saved"),
    "/exit": (Dialog.leave, "", "leaves, as Ctrl-D does"),
}


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """What Ctrl-C asked for meanwhile. It raises KeyboardInterrupt too, which is lost where Python frees an object."""
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    if before is not signal.default_int_handler:  # somebody else's, or none
        yield asked
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def stats(answer: Any) -> str:
    def speed(n: int, seconds: float) -> str:
        return f"{n / seconds if seconds else 0:,.0f} tokens/s"

    return (
        f"read {answer.n_prompt} tokens ({speed(answer.n_prompt, answer.prompt_seconds)}), {answer.n_cached} were read "
        f"before; generated {answer.n_generated} ({speed(answer.n_generated, answer.seconds)}), "
        f"ended by {answer.finish}; seed {answer.seed}"
    )


# ---- lines -----------------------------------------------------------------------------------------------------------


def is_terminal(file: Any) -> bool:
    return file is not None and not file.closed and file.isatty()


def editable_line(prompt: str) -> str | None:
    """A line from the terminal, without its end; None when there are no more."""
    from pygpt.cli import utf8

    with contextlib.suppress(ImportError):  # not everywhere
        import readline  # noqa: F401  input() uses it
    try:
        return utf8(input(prompt).encode("utf-8", "surrogateescape"), "the line")
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        return utf8(error.object, "the line")


def plain_line(prompt: str) -> str | None:
    """The same from anything else; a prompt goes to stderr."""
    from pygpt.cli import utf8

    if prompt and sys.stderr is not None:
        print(prompt, end="", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    return utf8(data.rstrip(b"\r\n"), "the line") if data else None


# ---- files -----------------------------------------------------------------------------------------------------------


def named(command: str, path: str) -> str:
    from pygpt._lib import BadArgument

    if not path:
        raise BadArgument(f"{command} needs the name of a file")
    return os.path.realpath(os.path.expanduser(path))


def save(path: str, messages: list[dict[str, str]], replace: bool) -> None:
    """Writes a list of {"role", "content"}, whole or not at all."""
    import json

    from pygpt._lib import BadArgument, Error

    if os.path.exists(path) and not replace:
        raise BadArgument(f"{path!r} is there already: name another file, or remove it first")
    part = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(part, "x", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(messages, file, ensure_ascii=False, indent=1)
            file.write("\n")
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise Error(f"{path!r} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.unlink(part)


def load(path: str, chat: Any) -> None:
    """Takes up what save wrote; an error changes nothing."""
    import json

    from pygpt._lib import BadFormat, Error, Unreadable

    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        messages = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        messages = None
    if not isinstance(messages, list):
        raise BadFormat(f'{path!r} holds no conversation: expected a JSON list of {{"role": .., "content": ..}}')
    try:
        chat.messages = messages
    except Error as error:
        raise BadFormat(f"{path!r} holds no conversation that can go on: {error}") from None


# ---- the command line ------------------------------------------------------------------------------------------------


def arguments(p: argparse.ArgumentParser) -> None:
    from pygpt.cli import MAX_THREADS, setting, whole

    p.add_argument("model", metavar="MODEL")
    p.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    p.add_argument("-n", "--tokens", dest="max_tokens", metavar="TOKENS", type=whole(1), help="per answer (1024)")
    p.add_argument("-c", "--context", dest="n_ctx", metavar="N", type=whole(1), help="default: the model's context")
    p.add_argument("--temperature", metavar="T", type=setting("temperature", float), help="0: greedy; default 0.8")
    p.add_argument("--top-k", metavar="K", type=setting("top_k", int), help="0: off; default 200")
    p.add_argument("--top-p", metavar="P", type=setting("top_p", float), help="1 (default): off")
    p.add_argument("--min-p", metavar="P", type=setting("min_p", float), help="0 (default): off")
    p.add_argument("--repeat-penalty", metavar="R", type=setting("repeat_penalty", float), help="1 (default): off")
    p.add_argument("--seed", metavar="S", type=setting("seed", int), help="the same seed gives the same answers")
    p.add_argument("--unknown", choices=["error", "skip"], default="error", help="characters the vocabulary lacks")
    p.add_argument("-t", "--threads", metavar="THREADS", type=whole(1, MAX_THREADS), help="default: every processor")
    p.add_argument("--stats", action="store_true", help="speed of each answer, to stderr")
    p.epilog = (
        "A nanochat answers in 256 tokens at temperature 0.6 from its likeliest 50 by default, as its authors do."
    )
