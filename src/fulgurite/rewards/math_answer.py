"""Grades an answer to a mathematical question against its gold answer.

In order: the answer is cut out of the text (`extract`), both are written in one spelling (`latex`), compared as text, as
quantities with units (`units`), as mathematics (`expression`, `structure`, `numeric`), and last, where those cannot decide,
by Math-Verify (`symbolic`). A wrong answer that is rewarded is the worst error here, so doubt is never `correct`.

Conventions: units and `x =` may be missing on one side, but those of both sides must agree; an answer may name what it gives
(`cos A =`, `m + n =`) and put the letter of a choice before it; it may leave out the gold's base; 50% is 0.5 and, as a
percentage, 50; decimals must be equal, or have at least six places and be the gold rounded; a list without brackets has no
order, one in round brackets has; `log` without a base is neither `ln` nor base 10.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from . import numeric, structure, symbolic
from .atoms import SHORT_WORDS
from .expression import read
from .extract import Where, final_answer
from .latex import Unreadable, plain
from .numeric import TooLarge, Undecided
from .units import NEVER, SCALES, Unit, is_known, read_unit

LONGEST_ANSWER = 1_000
LONGEST_DIGITS = 1_000
DEEPEST = 40
FEWEST_PLACES = 6
FLOAT_PLACES = 14  # of 0.30000000000000004: the noise of a float
CHOICE = re.compile(r"(?:\\text\s*)?\{?\s*(?:option|choice)?\s*\(?\s*([A-Ka-k])\s*\)?\s*\}?\s*", re.IGNORECASE)
CHOICE_AND_TEXT = re.compile(r"(?:\\text\{)?\s*(?:\(([A-K])\)|([A-K])[.):])\s*\}?\s*(\S.*)", re.DOTALL)
MORE_CHOICES = re.compile(r"(?:\\text\{)?\s*(?:or|and)\b|[,;/&+]|.*(?:\([A-K]\)|\b[A-K][.):])", re.DOTALL)
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
UNIT_START = re.compile(r"(?:(?<=[\d)}\]])|\\(?:pi|infty))(?P<gap>\s*)(?=\\text\{|[A-Za-z])")
RATE = re.compile(r"[A-Za-z]\s*/\s*[hs]\b")
UNIT_TAIL = re.compile(r"(?:\\text\{[^{}]*\}|[A-Za-z.,/ ]|\\cdot|\^\s*\{?\s*-?\d\s*\}?)+")
ANGLE_FUNCTION = re.compile(r"sin|cos|tan|cot|sec|csc")
DECIMAL = re.compile(r"-?\d*\.(\d+)")
DIMENSIONS = re.compile(r"\d+(?:\\times\d+)+")
TIMES_SIGN = re.compile(r"(?<=\d)\s*[xX*]\s*(?=\d)")
WORDS = re.compile(r"\\[A-Za-z]+|[A-Za-z0-9]+|[^\sA-Za-z0-9]")
HALF_OF_DAY = re.compile(r"(?<=\d)\s*([ap])\.?\s*m\b\.?", re.IGNORECASE)
ARTICLE = re.compile(r"\b(?:the|an?)\s+(?=[a-z]{3})", re.IGNORECASE)
LEAD_IN = re.compile(r"^(?:the )?solutions?(?: set)?(?: is| are)?\s*:?\s*(?=\$|\\|\[)", re.IGNORECASE)
SAID_TWICE = re.compile(r"(.*(?:[<>]|\\(?:le|ge)).*?)\s*:\s*([(\[].*)", re.DOTALL)
LABEL = re.compile(
    r"(?:(?:\\text\{(?!\s*not\b)[A-Za-z ]+\}|(?:m\s*)?\\(?:angle|triangle)\s*[A-Z]{1,4}"
    r"|[A-Z](?:\s*\\c[au]p\s*[A-Z])+)\s*){1,3}="
)
JOINER = re.compile(r",|;|\\text\{\s*and\s*\}|\band\b")


class Grade(NamedTuple):
    """`outcome` is correct, wrong or ungradable; `answer` is the text that was compared; `reason`: why it is not correct."""

    outcome: str
    answer: str = ""
    reason: str = ""


class Quantity(NamedTuple):
    """A text cut into its value, its factor and its unit."""

    text: str
    unit: Unit | None = None
    factor: Fraction = Fraction(1)


def grade(gold: str | list[str], answer: str, where: Where = "any") -> Grade:
    """The grade of a solution text.

    Args:
        gold: the right answer, or several of which one must be met; LaTeX or plain, with or without dollar signs or a box.
        where: where the text must give its answer, see `extract.final_answer`.
    """
    given = final_answer(answer, where)
    if given is None:
        return Grade("ungradable", "", "the text gives no answer")
    golds = [form for text in ([gold] if isinstance(gold, str) else gold) for form in gold_forms(final_gold(text))]
    shown = given[:LONGEST_ANSWER]
    if answer.strip() in golds and where == "any":
        return Grade("correct", shown)
    reason = refusal(given)
    if reason and given not in golds:
        return Grade("ungradable", shown, reason)
    try:
        if any(agree(text, given) for text in golds):
            return Grade("correct", shown)
    except (TooLarge, RecursionError, ArithmeticError) as error:
        return Grade("ungradable", shown, f"cannot be computed: {error}")
    return Grade("wrong", shown, f"not equal to {' or '.join(golds)[:LONGEST_ANSWER]}")


def final_gold(text: str) -> str:
    """A gold answer without its box or GSM8K marker."""
    boxed = final_answer(text, "boxed") if r"\boxed" in text else None
    return boxed or text.rpartition("####")[2].strip()


def gold_forms(text: str) -> list[str]:
    """A gold as it is, or what it says after `Solution is:`; of `x > 2 : (2, infinity)` also each half."""
    text = LEAD_IN.sub("", text)
    twice = SAID_TWICE.fullmatch(text.strip("$ "))
    return [text, *twice.groups()] if twice else [text]


def refusal(text: str) -> str:
    """Why a text is not read at all; "" where it is."""
    if len(text) > LONGEST_ANSWER:
        return f"an answer of {len(text)} characters; at most {LONGEST_ANSWER} are read"
    if re.search(rf"\d{{{LONGEST_DIGITS}}}", text):
        return f"a number of more than {LONGEST_DIGITS} digits"
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return f"brackets nested {deepest} deep; at most {DEEPEST} are read" if deepest > DEEPEST else ""


def agree(gold: str, answer: str) -> bool:
    """Whether an extracted answer meets a gold, as a choice, or with the letter of a choice before it. Raises TooLarge."""
    if not answer.strip() or not gold.strip():
        return False
    if (choice := same_choice(gold, answer)) is not None:
        return choice
    gold, answer = plain(gold), plain(answer)
    with_choice = None if CHOICE_AND_TEXT.fullmatch(gold) else CHOICE_AND_TEXT.fullmatch(answer)
    return meets(gold, answer) or (with_choice is not None and meets(gold, with_choice[3]))


def meets(gold: str, answer: str) -> bool:
    """Whether an answer in plain spelling meets a gold. Raises TooLarge."""
    if "=" not in gold and (label := LABEL.match(answer)):
        answer = answer[label.end() :]
    if compact(gold) == compact(answer):
        return True
    if DIMENSIONS.fullmatch(compact(gold)):
        return compact(gold) == compact(TIMES_SIGN.sub(r"\\times", re.sub(r"\\text\{[^{}]*\}$", "", answer)))
    undecided, too_large = False, None
    for first in quantities(gold, True):
        for second in quantities(answer, False):
            try:
                if same_quantity(first, second):
                    return True
            except (Unreadable, Undecided):
                undecided = True
            except TooLarge as error:
                too_large = error
    if same_words(gold, answer):
        return True
    if too_large:
        raise too_large
    return undecided and formula(gold) and formula(answer) and symbolic.agrees(gold, answer)


def compact(text: str) -> str:
    """Without white space, but 7 2 is not 72."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def same_choice(gold: str, answer: str) -> bool | None:
    """For a gold that is a choice letter; None for any other. A letter that is not bracketed must have the gold's case."""
    match = CHOICE.fullmatch(gold)
    if match is None:
        return None
    marked = gold.strip() != match[1]
    if not marked and match[1].islower():
        return None
    answer = plain(answer.strip("$ *"))
    given = CHOICE.fullmatch(answer)
    if given is None:
        with_text = CHOICE_AND_TEXT.fullmatch(answer)
        if with_text is None:
            return False if marked else None
        if MORE_CHOICES.match(with_text[3]):
            return False
        return (with_text[1] or with_text[2]) == match[1].upper()
    if not marked and answer.strip().islower() and len(answer.strip()) == 1:
        return False
    return given[1].upper() == match[1].upper()


def quantities(text: str, is_gold: bool) -> list[Quantity]:
    """The readings of a text: with commas between thousands or between items, with a unit or with a product of letters."""
    text = THOUSANDS.sub(lambda m: joined(m) if re.search("[, ]0", m[0]) else m[0], text)  # no list has an item 080
    readings = [THOUSANDS.sub(joined, text)]
    if "," in readings[0] or readings[0] != text:
        readings = [text, *readings] if re.search(r"[(\[]|\\\{", text) else [readings[0], text]
    found = [of_one_unit(reading, is_gold) for reading in readings if JOINER.search(reading)]
    found = [quantity for quantity in found if quantity]
    for reading in dict.fromkeys(readings):
        money = re.match(r"^(-?)\s*(?:(?:US)?(?:\\\$|[€£])|USD\b)\s*(.+)$", reading, re.DOTALL)
        if money:
            unit = read_unit("euro" if "€" in reading else "gbp" if "£" in reading else "dollar")
            inner = split_unit(money[2], is_gold)
            unit = unit if inner.unit is None or inner.unit == unit else Unit((("several units", 1),), Fraction(1))
            found.append(Quantity(money[1] + inner.text, unit, inner.factor))
            continue
        found.append(split_unit(reading, is_gold))
        if found[-1].unit and r"\text" not in reading and not reading.endswith("%"):  # 49 - 70 n may be newtons or a product
            found.append(Quantity(reading))
    return found


def joined(match: re.Match) -> str:
    return re.sub("[, ]", "", match[0])


def of_one_unit(text: str, is_gold: bool) -> Quantity | None:
    """A list whose items all have the same unit: `30 mph, 40 mph`."""
    items = [split_unit(item.strip(), is_gold) for item in JOINER.split(text)]
    same = items[0].unit is not None and all(item[1:] == items[0][1:] for item in items)
    return items[0]._replace(text=", ".join(item.text for item in items)) if same else None


def split_unit(text: str, is_gold: bool) -> Quantity:
    """The value before a unit: `15\\text{ cm}^2`, `18 eggs`, `90^\\circ`, `3 million`."""
    if text.endswith(r"^\circ") and not ANGLE_FUNCTION.search(text):
        return Quantity(text[: -len(r"^\circ")], read_unit("degree"))
    degrees = re.fullmatch(r"(.*)\^\\circ\s*(?:\\text\{\s*([CF])\s*\}|([CF]))", text, re.DOTALL)
    if degrees:
        return Quantity(degrees[1], Unit(((f"degrees {degrees[2] or degrees[3]}", 1),), Fraction(1)))
    if text.endswith("%"):
        return Quantity(text[:-1].strip(), read_unit("%"))
    for cut in cuts(text):
        value, tail = text[:cut].strip(), text[cut:]
        words = re.findall(r"[A-Za-z]+", tail.replace(r"\text", " ").replace(r"\cdot", " "))
        if (
            not value
            or not words
            or not re.search(r"[\d)}\]]$|\\pi$|\\infty$", value)
            or any(word.lower() in NEVER for word in words)
        ):
            continue
        wrapped = tail.lstrip().startswith(r"\text{")
        if not wrapped and not all(unit_word(word, tail, is_gold) for word in words):
            continue
        factor = Fraction(1)
        while words and words[0].lower() in SCALES:
            factor *= SCALES[words[0].lower()]
            tail = tail.replace(words.pop(0), "", 1)
        unit = read_unit(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail)) if words else None
        if words and unit is None:
            continue
        return Quantity(value, unit, factor)
    return Quantity(text)


def cuts(text: str) -> list[int]:
    """Places where a unit may begin: after the last digit or closing bracket that is followed by letters, then earlier ones."""
    starts = [match.start("gap") for match in UNIT_START.finditer(text)]
    return [start for start in starts if UNIT_TAIL.fullmatch(text, start)]


def unit_word(word: str, tail: str, is_gold: bool) -> bool:
    """Whether letters outside \\text are a unit and not a product: one letter only in an answer or a speed, after a space."""
    if len(word) == 1:
        return word == "a" or (tail[:1].isspace() and is_known(word) and (not is_gold or bool(RATE.search(tail))))
    return is_known(word) or word.lower() in SCALES or (len(word) > 3) or word in ("per", "of", "sq", "cu", "in", "for")


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Raises Unreadable, Undecided."""
    percent = read_unit("%")
    if gold.unit != answer.unit and percent in (gold.unit, answer.unit):
        if None not in (gold.unit, answer.unit):
            return False
        return same_percent(gold, answer)
    if gold.unit and answer.unit and gold.unit.dimensions != answer.unit.dimensions:
        return False
    scale = (
        (answer.factor * answer.unit.factor) / (gold.factor * gold.unit.factor)
        if gold.unit and answer.unit
        else answer.factor / gold.factor
    )
    return same_value(gold.text, answer.text, scale)


def same_percent(gold: Quantity, answer: Quantity) -> bool:
    """One of the two has a percent sign: 50% is 0.5, and 50 where what was asked for is a percentage."""
    has_sign, bare = (gold, answer) if gold.unit else (answer, gold)
    ratio = Fraction(1, 100) if has_sign is answer else Fraction(100)
    if same_value(gold.text, answer.text, ratio):
        return True
    number = numeric.exact(read(bare.text))
    return number is not None and abs(number) >= 1 and same_value(gold.text, answer.text, Fraction(1))


def same_value(gold: str, answer: str, scale: Fraction) -> bool:
    """Whether `answer * scale` is the gold; rounded decimals of enough places count."""
    if scale == 1 and compact(gold) == compact(answer):
        return True
    first, second = read(gold), read(answer)
    if scale != 1:
        number = numeric.exact(second)
        second = ("num", number * scale) if number is not None else ("mul", (("num", scale), second))
    return structure.same(first, second) or (scale == 1 and rounded(gold, first, answer, second))


def rounded(gold_text: str, gold: tuple, answer_text: str, answer: tuple) -> bool:
    """Whether one is a decimal of at least six places and as many significant digits, and the other rounds to it."""
    for text, node, other in ((gold_text, gold, answer), (answer_text, answer, gold)):
        match = DECIMAL.fullmatch(compact(text))
        if match is None or len(match[1]) < FEWEST_PLACES or len(compact(text).lstrip("-0.").replace(".", "")) < FEWEST_PLACES:
            continue
        if numeric.symbols(other) or other[0] in (
            "rel",
            "list",
            "tuple",
            "set",
            "interval",
            "union",
            "matrix",
            "such",
            "based",
        ):
            continue
        difference = abs(numeric.value(other, {}) - numeric.value(node, {}))
        noise = numeric.MP.mpf(10) ** -14 * abs(numeric.value(other, {})) if len(match[1]) >= FLOAT_PLACES else 0
        if difference <= max(noise, numeric.MP.mpf(10) ** -len(match[1]) * 0.5000001):
            return True
    return False


def same_words(gold: str, answer: str) -> bool:
    """Text against text: spacing, articles, \\text and the case of words do not count."""
    first, second = words(gold), words(answer)
    is_text = ":" in first or any(len(word) > 1 and word.isalpha() for word in first)
    return is_text and len(first) == len(second) and all(map(same_word, first, second))


def same_word(gold: str, answer: str) -> bool:
    """AB is not ab, but Red is red."""
    same_tail = len(gold) > 3 or gold[1:] == answer[1:] and (len(gold) == 3 or gold.lower() in SHORT_WORDS)
    return gold == answer or (same_tail and gold.casefold() == answer.casefold())


def words(text: str) -> list[str]:
    text = HALF_OF_DAY.sub(lambda half: f" {half[1].lower()}m", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text))
    return [word for word in WORDS.findall(ARTICLE.sub("", text)) if word not in '".']


def formula(text: str) -> bool:
    """Whether a text is mathematics without words."""
    return r"\text" not in text and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text)
