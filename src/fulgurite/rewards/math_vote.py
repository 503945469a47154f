"""The grade of a mathematical answer, with the answer in a spelling that others vote for too."""

from __future__ import annotations

from . import numeric
from .expression import read
from .extract import Where
from .latex import plain
from .math_answer import compact, final_gold, grade


def judge(golds: list[str], text: str, where: Where) -> tuple[str, str, str]:
    """(outcome, answer, reason) as of `grade`, the answer of one that can vote respelled: the first gold for a correct one,
    however it is written, a number as an exact fraction, anything else in one spelling without spaces."""
    graded = grade(golds, text, where)
    respelled = {"correct": lambda: final_gold(golds[0]), "wrong": lambda: spelled(graded.answer)}
    return graded.outcome, respelled.get(graded.outcome, lambda: graded.answer)(), graded.reason


def spelled(answer: str) -> str:
    text = plain(answer)
    try:
        number = numeric.exact(read(text))
    except (ValueError, ArithmeticError, RecursionError):
        number = None
    return compact(text) if number is None else str(number)
