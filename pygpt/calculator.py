"""nanochat's tool: it writes an expression between two control tokens, and what that makes is put behind them.

    <|python_start|>12*3<|python_end|><|output_start|>36<|output_end|>

Nothing is run as Python: sums are taken apart, and the only call is 'text'.count('part').
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from pygpt.model import Tools
from pygpt.tokenizer import PieceTokenizer

TOKENS = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
LONGEST = 1000  # characters of an expression
SUM = re.compile(r"[0-9*+\-/.() ]+")
COUNT = re.compile(r"""\s*(?P<a>['"])(?P<text>[^'"\\]*)(?P=a)\.count\((?P<b>['"])(?P<part>[^'"\\]*)(?P=b)\)\s*""")
OPERATIONS: dict[type[ast.AST], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str | None:
    """What the expression makes, as Python writes it; None for what the tool does not compute. Commas do not count."""
    expression = expression.replace(",", "").strip(" ")
    if len(expression) > LONGEST:
        return None
    if found := COUNT.fullmatch(expression):
        return str(found["text"].count(found["part"]))
    if not SUM.fullmatch(expression):
        return None
    try:
        return str(_value(ast.parse(expression, mode="eval").body))
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        return None


def _value(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.operand))
    raise ValueError


def calculator(tokenizer: PieceTokenizer) -> Tools:
    """The tool for a vocabulary that has its tokens; else none."""
    ids = [tokenizer.template_tokens.get(name) for name in TOKENS]
    if None in ids:
        return {}
    begin, end, out, out_end = ids

    def answer(told: list[int]) -> list[int]:
        last = next((i for i in range(len(told) - 2, -1, -1) if told[i] in (begin, end)), -1)
        if last < 0 or told[last] != begin:
            return []
        result = calculate(tokenizer.decode(told[last + 1 : -1]))
        return [] if result is None else [out, *tokenizer.encode(result, add_special=False), out_end]

    return {end: answer}
