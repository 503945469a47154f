"""Grades a short answer to a question: a number within a tolerance, or words after normalisation."""

from __future__ import annotations

import re
import string
from decimal import Decimal
from typing import Literal

from .extract import Where, final_answer

Match = Literal["numeric", "exact", "contains"]
LONGEST_ANSWER = 1_000
NUMBER = re.compile(
    r"(?P<sign>[-−+]?)\s*(?P<open>\()?\s*(?:US)?\\?[$€£]?\s*(?P<inner>[-−]?)\s*(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<power>[-+]?\d{1,2}))?\s*(?P<close>\))?\s*(?P<percent>\\?%|percent\b|per cent\b)?\s*(?P<unit>[A-Za-z$€£ .]*)"
)
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´")


def grade(golds: list[str], text: str, match: Match, where: Where, relative_tolerance: float) -> tuple[str, str]:
    """(outcome, the answer read, normalised); outcome is `correct`, `wrong` or `ungradable`.

    Args:
        golds: the right answers, of which one must be met.
        match: `numeric`: a number within `relative_tolerance` of a gold, see `same_number`; a gold that is no number is matched
            exactly. `exact`: equal after normalisation. `contains`: the words of a gold stand together in the answer.
        where: where the text must give its answer, see `extract.final_answer`.
    """
    answer = final_answer(text, where)
    if answer is None or len(answer) > LONGEST_ANSWER:
        return "ungradable", ""
    answer = answer.strip("$ \n")
    if match == "numeric":
        correct = any(same_number(gold, answer, relative_tolerance) for gold in golds)
    else:
        correct = any((same_words if match == "exact" else holds_words)(gold, answer) for gold in golds)
    value = number(answer) if match == "numeric" else None
    read = normalised(answer) if value is None else format(value[0].normalize(), "f")
    return ("correct" if correct else "wrong"), read


def same_number(gold: str, answer: str, relative_tolerance: float) -> bool:
    """Whether two numbers agree; where the gold is none, whether the texts do.

    A percent sign or a word like million on one side only leaves open whether it counts: accounts are kept in millions, and a
    share is asked for as a percentage.
    """
    wanted, given = number(gold), number(answer)
    if wanted is None:
        return same_words(gold, answer)
    if given is None:
        return False
    (right, right_factor), (value, factor) = wanted, given
    if right_factor != 1 and factor != 1:
        return close(right * right_factor, value * factor, relative_tolerance)
    return any(close(r, v, relative_tolerance) for r in {right, right * right_factor} for v in {value, value * factor})


def close(right: Decimal, value: Decimal, relative_tolerance: float) -> bool:
    """2019 is not 2018, however wide the tolerance: two whole numbers must be equal."""
    if right == value or right == right.to_integral_value() and value == value.to_integral_value():
        return right == value
    return abs(right - value) <= Decimal(str(relative_tolerance)) * abs(right)


def number(text: str) -> tuple[Decimal, Decimal] | None:
    """(a number, the factor that its percent sign or a word like million stands for); None where the text is not one number
    with at most a unit. `(3.1)` is -3.1, as in accounts."""
    found = NUMBER.fullmatch(text.strip().rstrip("."))
    if found is None or bool(found["open"]) != bool(found["close"]):
        return None
    value, factor = Decimal(found["digits"].replace(",", "")).scaleb(int(found["power"] or 0)), Decimal(1)
    for word in found["unit"].lower().split():
        factor = factor.scaleb(SCALES.get(word, 0))
    if found["percent"]:
        factor = factor.scaleb(-2)
    negative = (found["sign"] in ("-", "−")) + (found["inner"] in ("-", "−")) + bool(found["open"])
    return (-value if negative else value), factor


def same_words(gold: str, answer: str) -> bool:
    return bool(normalised(gold)) and normalised(gold) == normalised(answer)


def holds_words(gold: str, answer: str) -> bool:
    return bool(normalised(gold)) and f" {normalised(gold)} " in f" {normalised(answer)} "


def normalised(text: str) -> str:
    """Small letters without punctuation and articles, single spaces (as the evaluation of SQuAD, arXiv 1606.05250)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())
