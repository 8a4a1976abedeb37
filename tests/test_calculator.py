"""pygpt.calculator: what nanochat's tool computes, and that an answer goes on behind its result."""

import pytest
from test_chat import PLACE, chat_keys

import pygpt
from pygpt import Chat
from pygpt.calculator import TOKENS, calculate, calculator
from pygpt.tokenizer import Tokenizer
from pygpt.vocabulary import CONTROL


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2+3", "5"),
        (" 12 * (3 - 1) ", "24"),
        ("1,234*2", "2468"),
        ("7/2", "3.5"),
        ("7//2", "3"),
        ("-.5 + +1", "0.5"),
        ("0.1+0.2", "0.30000000000000004"),
        ("'strawberry'.count('r')", "3"),
        ('"a b, a".count("a")', "2"),
        ("'aaa'.count('')", "4"),
        ("9" * 300 + "*" + "9" * 300, str((10**300 - 1) ** 2)),
    ],
)
def test_it_computes_sums_and_counts(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2**3",
        "2+",
        "1/0",
        "9" * 400 + "/1.5",
        "()",
        "(1)(2)",
        "1.real",
        "a+1",
        "1e5",
        "0x10",
        "007",
        "__import__('os').system('echo no')",
        "'a'.upper()",
        "'a'.count('b').bit_length()",
        "'a'*9",
        "'\\'a'.count('a')",
        "(" * 900 + "1" + ")" * 90,
        "1+1" + " " * 1000 + "+1",
        "1\n+1",
        "1\0",
    ],
)
def test_nothing_else_is_computed(expression):
    assert calculate(expression) is None


@pytest.mark.parametrize(("expression", "result"), [("1+" * 499 + "1", "500"), ("-" * 999 + "1", "-1")])
def test_what_python_finds_too_deep_is_not_computed(expression, result):
    assert calculate(expression) in (result, None)  # as the version has it


TOOL = [(name, CONTROL) for name in TOKENS]


def tool_user(parrot_model, said):
    """A model that answers every message so; strings are control tokens."""
    keys = chat_keys("nanochat", extra=TOOL)
    tokens = keys["tokenizer.ggml.tokens"]
    ids = [tokens.index(part) if isinstance(part, str) else PLACE[part] for part in said]
    cycle = [tokens.index("<|assistant_start|>"), *ids, len(tokens) - 1]
    return parrot_model(keys, cycle, len(tokens), 400)


BEGIN, END, OUT, OUT_END = TOKENS


def test_the_answer_goes_on_behind_the_result(parrot_model):
    path = tool_user(parrot_model, [BEGIN, *b"2*34", END, OUT, OUT_END, *b"!"])
    with pygpt.Model(path) as model, Chat(model, temperature=0) as chat:
        answer = chat.send("How much?")
        text = "".join(answer)
        ids = answer.heard.ids
        spelled = [model.tokenizer.token_bytes(id).decode() for id in ids]
        assert spelled == [BEGIN, "2", "*", "3", "4", END, OUT, "6", "8", OUT_END, "!"]
        assert answer.finish == "end" and answer.n_generated == len(ids) and text.endswith("!")
        again = chat.send("And again?")
        assert "".join(again) == text and again.n_cached >= answer.n_prompt + len(ids)
    with pygpt.Model(path) as model, Chat(model, temperature=0, max_tokens=8) as chat:
        answer = chat.send("How much?")
        assert "".join(answer) and answer.finish == "length" and len(answer.heard.ids) >= 8


def test_what_it_does_not_compute_is_left_to_the_model(parrot_model):
    path = tool_user(parrot_model, [BEGIN, *b"x+1", END, *b"?"])
    with pygpt.Model(path) as model, Chat(model, temperature=0) as chat:
        answer = chat.send("How much?")
        list(answer)
        spelled = [model.tokenizer.token_bytes(id).decode() for id in answer.heard.ids]
        assert spelled == [BEGIN, "x", "+", "1", END, "?"] and answer.finish == "end"


def test_an_end_without_a_begin_calls_nothing(parrot_model):
    path = tool_user(parrot_model, [*b"2+3", END, *b"!"])
    with pygpt.Model(path) as model, Chat(model, temperature=0) as chat:
        answer = chat.send("How much?")
        list(answer)
        assert len(answer.heard.ids) == 5 and answer.finish == "end"


def test_a_result_that_the_context_has_no_room_for_ends_the_answer(parrot_model):
    path = tool_user(parrot_model, [BEGIN, *b"98*7", END, OUT, OUT_END, *b"!"])
    finishes = []
    for n_ctx in range(12, 24):  # 5 tokens of the question, 12 of the answer
        with pygpt.Model(path) as model, Chat(model, temperature=0, n_ctx=n_ctx) as chat:
            answer = chat.send("?")
            list(answer)
            finishes.append(answer.finish)
    assert set(finishes[:3]) == {"context"} and finishes[-1] == "end"


def test_other_vocabularies_have_no_tool():
    assert calculator(Tokenizer.from_keys(chat_keys("nanochat"))) == {}
    assert list(calculator(Tokenizer.from_keys(chat_keys("nanochat", extra=TOOL)))) != []
