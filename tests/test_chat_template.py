"""pygpt.chat_template in long conversations: what they cost, whom the sentence names, and what still ends early."""

import resource
import time

import pytest

from pygpt import chat_template
from pygpt._lib import BadArgument, BadFormat
from pygpt.chat_template import Template


def talk(n, content="What is it, and why?"):
    """A conversation of n messages, the last of the user."""
    roles = ("assistant", "user") if n % 2 == 0 else ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i in range(n)]


def rendered(source, messages, **names):
    return Template(source, "m.gguf", **names).render(messages)


# ---- what every step may ask for -------------------------------------------------------------------------------------

ASKED = [
    "messages | length - loop.index0",
    "messages | count",
    "(messages | first).role",
    "(messages | last).role",
    "messages | default(none) is none",
    "nothing | d(messages) is none",
    "messages is defined",
    "messages is undefined",
    "messages is none",
    "messages is string",
    "messages is mapping",
    "messages is sequence",
    "messages is iterable",
    "messages is sameas messages",
    "messages is callable",
    "messages is number",
    "messages is boolean",
]


@pytest.mark.parametrize("asked", ASKED)
def test_the_time_of_a_long_conversation_does_not_grow_with_its_square(asked):
    """Of the list of messages, nothing is read here but its length, its ends and its kind."""
    source = "{% for message in messages %}{% set x = ASKED %}{% endfor %}{{ messages | length }}"
    assert rendered(source.replace("ASKED", asked), talk(5000)) == "5000"


@pytest.mark.parametrize(
    "asked", ["system | default('')", "nothing | default(system)", "[system] | first", "system | length"]
)
def test_a_text_that_is_passed_on_is_not_made_again(asked):
    source = "{% set system = messages[0].content %}{% for message in messages %}{% set x = ASKED %}{% endfor %}done"
    messages = [{"role": "system", "content": "Be brief. " * 10_000}, *talk(2000)]
    assert rendered(source.replace("ASKED", asked), messages) == "done"


EVERYTHING = """{% for x in [0, 1, 7, -3, 2.0, 'a', '', none, true, [], [1], {'a': 1}, missing] -%}
{{ x is defined }} {{ x is undefined }} {{ x is none }} {{ x is string }} {{ x is mapping }} {{ x is number }}
{{- x is sequence }} {{ x is iterable }} {{ x is boolean }} {{ x is true }} {{ x is false }} {{ x is integer }}
{{- x is float }} {{ x is callable }} {{ x is sameas(true) }} {{ x is escaped }} {{ x | default('-') }}
{{- x | d('-', true) }}
{% endfor -%}
{% for x in [0, 1, 7, -3, 2.0] %}{{ x is odd }} {{ x is even }} {{ x is divisibleby 7 }} {{ x is divisibleby(num=3) }}
{% endfor -%}
{{ 'x%s' is odd }} {{ [1, 2, 3, 4] | select('odd') | list }} {{ [7, 8] | reject('divisibleby', 7) | list }}
{{ messages | map(attribute='role') | list | length }} {{ messages | map(attribute='no.t', default=3) | list | last }}
{{ messages | selectattr('role', 'equalto', 'user') | list | count }} {{ messages | rejectattr('role') | list }}
{{ {'a': 1} | items | list }} {{ [1, 2] | reverse | list }} {{ 'abc' | reverse }} {{ 'abc' | list }} {{ 'abc' | first }}
{{ 'abc' | last }} {{ [] | first is defined }} {{ [] | last is defined }} {{ [0, 1] | select | list }}"""


def test_what_is_not_measured_gives_what_jinja2_gives():
    sandbox = pytest.importorskip("jinja2.sandbox")
    plain = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(EVERYTHING).render(messages=talk(5))
    assert rendered(EVERYTHING, talk(5)) == expected and "True" in expected


# ---- whom the sentence names -----------------------------------------------------------------------------------------

SQUARES = "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}"
COPIES = "{% for message in messages %}{{ messages | tojson }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "limit"),
    [(SQUARES, "runs for more than 0.3 seconds"), (COPIES, "makes more than 65048576 characters of text")],
    ids=["time", "text"],
)
def test_a_conversation_that_is_too_long_is_the_reason_that_is_given(source, limit, monkeypatch):
    template = Template(source, "m.gguf")
    template.render(talk(1))  # imports what there is to import
    monkeypatch.setattr(chat_template, "SECONDS", 0.3 if source is SQUARES else 60)
    with pytest.raises(BadArgument) as error:
        template.render(talk(5000, "x" * 200))
    assert str(error.value) == f"m.gguf: its chat template {limit} for 5000 messages; begin a new conversation"
    template.render(talk(3))


@pytest.mark.parametrize("n", [1, 5000])
@pytest.mark.parametrize(
    "source",
    ["{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "{{ 'x' | center(3) }}"],
    ids=["loops", "a filter"],
)
def test_a_template_that_goes_too_far_for_any_conversation_is_the_reason_that_is_given(source, n, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(BadFormat, match=r"^m\.gguf: its chat template [^\n]*, and such are not run; convert the model"):
        rendered(source, talk(n))


def test_a_template_that_refuses_the_last_message_alone_is_itself_the_reason(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    source = "{% if messages | length < 2 %}{{ raise_exception('more') }}{% endif %}" + SQUARES
    with pytest.raises(BadFormat, match=r"runs for more than 0\.3 seconds, and such are not run"):
        rendered(source, talk(5000, "x" * 200))


# ---- what is not measured cannot be used to get around the limits ----------------------------------------------------

NESTED = "{% set n = namespace(x=['ha']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
FAR = {
    "the first printed": NESTED + "{{ n.x | first }}",
    "the last as text": NESTED + "{{ n.x | last | title }}",
    "a default as JSON": NESTED + "{{ nothing | default(n.x) | tojson }}",
    "a list as text": NESTED + "{{ n.x | list | string }}",
    "a list sorted": NESTED + "{{ n.x | reverse | list | sort }}",
    "a list compared": NESTED + "{{ [n.x] | select('eq', n.x | list) | list | length }}",
    "items printed": NESTED + "{{ {'a': n.x} | items | list }}",
    "texts of a map": NESTED + "{{ [n.x] | map('string') | list | length }}",
    "a map in upper case": NESTED + "{{ [n.x] | map('upper') | list | length }}",
    "hashes": NESTED.replace("[n.x, n.x]", "(n.x, n.x)").replace("['ha']", "('ha',)") + "{{ n.x is filter }}",
    "copies in a loop": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "characters in a loop": "{% for i in range(99999) %}{% set x = ('a' * 99999) | list %}{% endfor %}",
    "turned texts": "{% set a = 'a' * 99999 %}{% for i in range(99999) %}{% set x = a | reverse %}{% endfor %}",
    "lengths in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 'a' | length %}{% endfor %}"
    "{% endfor %}",
    "padding by a test": "{{ ('%' ~ '500000000d') is odd }}",
    "padding by a test that is applied": "{{ ['%500000000d'] | select('even') | list }}",
    "padding by a divisor": "{{ '%*d' is divisibleby((500000000, 1)) }}",
    "a constant": "{{ '%500000000d' is divisibleby(1) }}",
    "attributes of many": "{{ ([1] * 9000) | map(attribute='a.' * 9000 + 'a', default={}) | list | length }}",
    "sorting by many attributes": "{{ ([{}] * 9000) | map(attribute='a.' * 9000, default={}) | sort | length }}",
}


@pytest.mark.parametrize("source", FAR.values(), ids=FAR)
def test_a_template_that_goes_around_the_limits_ends_in_one_sentence(source, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    rendered("{{ messages }}", talk(1))  # imports what there is to import
    begin, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFormat, match=r"^m\.gguf: its chat template [^\n]*, and such are not run"):
        rendered(source, talk(1))
    assert time.monotonic() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100_000  # kB
