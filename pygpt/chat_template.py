"""Chat templates: jinja2's, as transformers uses them, run in its sandbox with their text and their time limited.

Nobody vouches for a template. Knows no model and no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from time import monotonic
from typing import Any

from pygpt._lib import BadArgument, BadFormat, Unsupported

TEXT_TIMES, TEXT_MORE = 64, 1 << 20  # characters that a template may make: so many for each of its messages', and more
SECONDS = 5  # that it may take; usual are milliseconds
LONGEST = 1 << 18  # characters of a template
DEEPEST = 64  # lists in lists

# What chat templates use of jinja2's filters. Others may be mentioned in a template, but not used.
FILTERS = frozenset(
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse select selectattr sort title trim unique upper".split()
)
# What is in a list is no matter to these, and is not measured: where a template asks for the number of messages at each
# of them, that would take a time that grows with their square.
PASSING = frozenset("count d default first last length".split())  # filters that give what they get, or its length
LAZY = frozenset("items list map reject rejectattr reverse select selectattr".split())  # what they apply is counted
KINDS = frozenset(  # tests
    "boolean callable defined escaped false float integer iterable mapping none number sameas sequence string true "
    "undefined".split()
)
METHODS = frozenset("center encode expandtabs ljust rjust to_bytes translate zfill".split())  # not to be used either
WIDTHS = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\*|\d{3})|\{[^{}:]*:[^{}]*(?:\{|\d{3})")  # formats that pad at will
LONGEST_FORMAT = 10_000
TICK, TEXT, SIZED = "pygpt: tick", "pygpt: text", "pygpt: sized"  # filters whose names no template can spell
AGAIN = "convert the model again, with another template"


class Limit(Exception):
    """How a template goes too far."""


class TooLong(Exception):
    """How a template goes too far for a conversation, and not for its last message alone."""


class Said(Exception):
    """What a template says by raise_exception."""


class Refusal(BadFormat):
    """A template says that it cannot have these messages."""


class Meter:
    """Counts what a template makes. Its methods stand in for those of the environment that the template runs in."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._call, self._operate, self._item = environment.call, environment.call_binop, environment.getitem
        self.begin(0)
        environment.call, environment.call_binop, environment.getitem = self.call, self.operate, self.item
        environment.intercepted_binops = frozenset(("+", "*", "**", "%"))
        environment.filters = {name: self.filter(name, filter) for name, filter in environment.filters.items()}
        environment.tests = {name: self.test(name, test) for name, test in environment.tests.items()}

    def filter(self, name: str, filter: Callable) -> Callable:
        """What stands in for a filter of jinja2's."""
        own = {
            "tojson": self.tojson,
            "join": self.join,
            "replace": self.replace,
            "string": self.text,
            "safe": self.text,
        }
        if name in own or name not in FILTERS:
            return own.get(name) or refusing(name)
        return self.counted(filter, reads=name not in PASSING | LAZY, makes=name not in PASSING)

    def test(self, name: str, test: Callable) -> Callable:
        """What stands in for a test of jinja2's."""
        own = {  # whose % may be that of a text
            "even": lambda value: self.operate(None, "%", value, 2) == 0,
            "odd": lambda value: self.operate(None, "%", value, 2) == 1,
            "divisibleby": lambda value, num: self.operate(None, "%", value, num) == 0,
        }
        return own.get(name) or self.counted(test, reads=name not in KINDS)

    def begin(self, n_characters: int) -> None:
        """Another text, of messages that have so many characters."""
        self._limit = self._left = TEXT_TIMES * n_characters + TEXT_MORE
        self._deadline = monotonic() + SECONDS

    def spend(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            raise Limit(f"makes more than {self._limit} characters of text")
        if monotonic() > self._deadline:
            raise Limit(f"runs for more than {SECONDS} seconds")

    def size(self, value: Any, depth: int = 0) -> int:
        """About the characters that a value has as text, which may be many more than it takes in memory."""
        if isinstance(value, (str, bytes)):
            return len(value)
        if not isinstance(value, (list, tuple, dict)):
            return value.bit_length() // 3 + 1 if isinstance(value, int) else 8
        if depth == DEEPEST:
            raise Limit(f"nests lists more than {DEEPEST} deep")
        n = 2
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            n += 2 + self.size(item, depth + 1)
            if n > self._left:
                self.spend(n)
        return n

    def text(self, value: Any) -> str:
        """What a template prints or joins."""
        if not isinstance(value, (str, int, float, list, tuple, dict, type(None), self._environment.undefined)):
            value = f"<{type(value).__name__}>"  # some would print what they hold
        text = str(self.sized(value))
        self.spend(len(text))
        return text

    def sized(self, value: Any) -> Any:
        """Lists that take little memory may take for ever to compare or to print: those are refused."""
        self.size(value)
        return value

    def counted(self, function: Callable, reads: bool = True, makes: bool = True) -> Callable:
        """reads: it may look into lists, and into lists in them; makes: it may give what was not there before."""

        @wraps(function)  # with what jinja2 marked it by
        def count(*args: Any, **kwargs: Any) -> Any:
            self.spend()
            value = function(*(self.sized(args) if reads else args), **kwargs)
            return self.made(value) if makes else value

        return count

    def made(self, value: Any) -> Any:
        self.spend(1 + len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else self.size(value))
        return value

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if name in METHODS:
            raise Limit(f"uses the method {name}")
        if isinstance(owner, str) and name == "replace":
            return self.replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return self.join(*args, owner, **kwargs)
        if name in ("format", "format_map"):  # the sandbox has wrapped it
            self.check_format(str(function.__wrapped__.__self__), (args, kwargs))
        return self.made(self._call(context, function, *args, **kwargs))

    def item(self, owner: Any, key: Any) -> Any:
        """By filters too, which may be told to look for very many."""
        self.spend(0)
        return self._item(owner, key)

    def operate(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self.check_format(left, right)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                    self.spend(self.size(value) * max(times, 0))
        elif operator == "**" and not (abs(left) <= 1e6 and abs(right) <= 100):
            raise Limit("computes a huge power")
        return self.made(self._operate(context, operator, left, right))

    def check_format(self, text: str, values: Any) -> None:
        if len(text) > LONGEST_FORMAT or WIDTHS.search(text):
            raise Limit("pads text by a format")
        self.spend(len(text) + (text.count("%") + text.count("{")) * self.size(values))

    def replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = self.text(text), self.text(old), self.text(new)
        self.spend(text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def join(self, items: Iterable[Any], d: Any = "", attribute: str | None = None) -> str:
        if attribute is not None:
            items = (self._environment.getitem(item, attribute) for item in items)
        texts, between = [self.text(item) for item in items], self.text(d)
        self.spend(len(between) * len(texts))
        return between.join(texts)

    def tojson(self, value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        """Without the escapes for HTML that jinja2's own makes."""
        width = len(indent) if isinstance(indent, str) else indent or 0
        self.spend(self.size(value) * (1 + width * DEEPEST))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refusing(name: str) -> Callable:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Limit(f"uses the filter {name}")

    return refuse


class Template:
    """A chat template as transformers runs them: messages in, text out. path: the file, for sentences."""

    def __init__(self, source: str, path: str, **names: Any) -> None:
        """names: variables of every text. Raises pygpt.Error, also if jinja2 is missing."""
        self._path, self._names = path, names
        if len(source) > LONGEST:
            raise BadFormat(f"{path}: its chat template has {len(source)} characters, more than {LONGEST}")
        environment = jinja_environment()
        self._meter = Meter(environment)
        self._template = self._guarded(lambda: compiled(environment, self._meter, source))

    def render(self, messages: list[dict[str, str]]) -> str:
        """Raises pygpt.Error for whatever the template does, and of these Refusal for what it says itself."""
        return self._guarded(lambda: self._limited(messages))

    def _limited(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._run(messages)
        except Limit as limit:
            if len(messages) > 1 and self._can(messages[-1:]):
                raise TooLong(f"{limit} for {len(messages)} messages") from None
            raise

    def _can(self, messages: list[dict[str, str]]) -> bool:
        try:
            self._run(messages)
        except Exception:  # a template may raise anything
            return False
        return True

    def _run(self, messages: list[dict[str, str]]) -> str:
        self._meter.begin(sum(len(message["content"]) for message in messages))
        return self._template.render(self._names, messages=messages)

    def _guarded(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except Said as said:
            raise Refusal(f"{self._path}: its chat template cannot have this conversation: {shown(said)}") from None
        except Limit as limit:
            raise BadFormat(f"{self._path}: its chat template {limit}, and such are not run; {AGAIN}") from None
        except TooLong as limit:
            raise BadArgument(f"{self._path}: its chat template {limit}; begin a new conversation") from None
        except Exception as error:  # a template may raise anything
            line = getattr(error, "lineno", None)
            where = f"line {line} of its chat template" if line else "its chat template"
            raise BadFormat(
                f"{self._path}: {where} is wrong ({type(error).__name__}: {shown(error)}); {AGAIN}"
            ) from None


def shown(error: Exception) -> str:
    """What an error says, without what a terminal obeys."""
    text = str(error)
    return repr(text if len(text) <= 200 else text[:200] + "...")


def jinja_environment() -> Any:
    """A sandbox with what transformers gives to templates."""
    try:
        from jinja2 import sandbox
        from jinja2.ext import Extension, loopcontrols
    except ImportError:
        raise Unsupported("chat templates need the package jinja2: pip install 'pygpt[chat]'") from None
    if not hasattr(sandbox.SandboxedEnvironment, "wrap_str_format"):
        raise Unsupported("this jinja2 is too old to run templates safely: pip install -U 'jinja2>=3.1.6'")
    generation = type("Generation", (Extension,), {"tags": {"generation"}, "parse": parse_generation})
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, generation]
    )
    environment.globals |= {
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format[:100]),
    }
    environment.globals.pop("lipsum")
    return environment


def parse_generation(_: Any, parser: Any) -> Any:
    """{% generation %}: what it marks is for training, and is text like any other."""
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: Any) -> None:
    raise Said(message)


def compiled(environment: Any, meter: Meter, source: str) -> Any:
    """The template, in which every step of a loop and all that is compared, printed or joined is metered."""
    from jinja2 import nodes, pass_context

    def through(name: str, node: Any) -> Any:
        if isinstance(node, nodes.TemplateData):
            node = nodes.Const(node.data, lineno=node.lineno)
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    environment.filters[TICK] = pass_context(lambda context, _: meter.spend())  # with a context nothing is folded
    environment.filters[TEXT] = pass_context(lambda context, value: meter.text(value))
    environment.filters[SIZED] = pass_context(lambda context, value: meter.sized(value))
    tree = environment.parse(source)
    for node in list(tree.find_all((nodes.For, nodes.Compare, nodes.Output, nodes.Concat))):
        if isinstance(node, nodes.For):
            tick = through(TICK, nodes.Const(None, lineno=node.lineno))
            node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        elif isinstance(node, nodes.Compare):
            for side in (node, *node.ops):
                side.expr = through(SIZED, side.expr)
        else:
            node.nodes = [through(TEXT, child) for child in node.nodes]
    return environment.from_string(tree.set_environment(environment))
