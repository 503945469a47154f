"""Compares two statements: sets in any order, tuples in order, intervals with their brackets, equations up to a factor."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from string import ascii_uppercase

from . import numeric
from .names import TRIGONOMETRY
from .numeric import Undecided

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
INFINITY = ("const", "inf")
REALS = ("sym", r"\mathbb{R}")
MOST_ITEMS = 64


def same(gold: tuple, answer: tuple) -> bool:
    """Whether an answer says what the gold says; a name such as `x =` may stand on one side only.

    Raises:
        Undecided: neither yes nor no can be told.
    """
    if gold == answer:
        return True
    if is_membership(gold) and is_membership(answer) and gold[1][0] != answer[1][0]:
        return False
    gold, answer = (without_pm(node[1][1] if is_membership(node) else node) for node in (gold, answer))
    if answer[0] == "rel" and answer[2][-1] == "~" and gold[0] != "rel":
        return any(same(gold, side) for side in exact_and_rounded(answer))
    if is_equation(gold) and is_equation(answer):
        return same_equation(gold, answer)
    gold, answer = without_name(gold, answer), without_name(answer, gold, is_label)
    gold, answer = one_sign_each(scaled(gold)), one_sign_each(scaled(answer))
    if is_inequality(gold) and is_inequality(answer):
        return same_inequality(gold, answer)
    gold, answer = as_set_of_numbers(gold), as_set_of_numbers(answer)
    kind = gold[0]
    if kind in ("interval", "union") or answer[0] in ("interval", "union"):
        return same_intervals(gold, answer)
    if kind == "list":
        return same_list(gold, answer)
    if kind == "set":
        items = {"set": lambda: answer[1], "list": lambda: answer[1]}.get(answer[0], lambda: (answer,))()
        return answer[0] != "tuple" and unordered(distinct(gold[1]), distinct(items))
    if kind == "tuple":
        items = in_order(answer)
        return items is not None and ordered(gold[1], items)
    if kind == "matrix":
        return same_matrix(gold, answer)
    if kind == "such":
        return answer[0] == "such" and same(gold[1], answer[1]) and same(gold[2], answer[2])
    if answer[0] == "set" and len(answer[1]) == 1:
        answer = answer[1][0]
    if kind == "rel" or answer[0] == "rel":
        return kind == answer[0] and gold[2] == answer[2] and ordered(gold[1], answer[1])
    if answer[0] in ("list", "set", "tuple", "matrix", "such"):
        return False
    return same_scalar(gold, answer)


def same_scalar(gold: tuple, answer: tuple) -> bool:
    if gold[0] == "based" or answer[0] == "based":
        return same_in_base(gold, answer)
    infinite = [endless(node) for node in (gold, answer)]
    if any(infinite):
        return infinite[0] == infinite[1]
    return numeric.equal(gold, answer)


def endless(node: tuple) -> int:
    """1 and -1 for plus and minus infinity, else 0."""
    if node == INFINITY or node == ("add", (INFINITY,)):
        return 1
    return -1 if node == ("neg", INFINITY) else 0


def same_in_base(gold: tuple, answer: tuple) -> bool:
    """Digits with their base; a gold in another base is asked for in that base, so its digits alone are enough."""
    if gold[0] != "based":
        return False
    if answer[0] == "based":
        return gold[1].lstrip("0") == answer[1].lstrip("0") and gold[2] == answer[2]
    return answer == ("num", Fraction(gold[1]))


# Names and relations


def is_equation(node: tuple) -> bool:
    return node[0] == "rel" and set(node[2]) == {"="}


def is_inequality(node: tuple) -> bool:
    return node[0] == "rel" and set(node[2]) <= set(FLIPPED)


def is_membership(node: tuple) -> bool:
    """`x in S`."""
    return node[0] == "rel" and node[2] == ("in",) and node[1][0][0] == "sym"


def is_name(node: tuple) -> bool:
    """x, f(x), (x, y): what may stand before an equals sign as a label."""
    if node[0] == "mul" and len(node[1]) == 2 and all(part[0] == "sym" for part in node[1]):
        return True  # f(x) where f is read as a factor
    if node[0] == "pow":  # of a matrix or a function
        return node[1][0] == "sym" and node[1][1][:1] in {*"fgh", *ascii_uppercase} and node[2] == ("neg", ("num", Fraction(1)))
    inverse = (
        node[0] == "mul" and len(node[1]) == 2 and node[1][0][0] == "pow" and node[1][0][2] == ("neg", ("num", Fraction(1)))
    )
    return node[0] == "sym" or inverse or (node[0] == "tuple" and all(part[0] == "sym" for part in node[1]))


def is_label(node: tuple) -> bool:
    """What an answer may put before its value besides a name: cos A, |AB|, dy/dx, m + n; not |x|, and nothing with a number."""
    if node[0] == "fn":
        return node[1] in TRIGONOMETRY and bool(numeric.symbols(node[2]))
    if node[0] in ("add", "mul"):
        return all(map(is_label, node[1]))
    lone = node[0] == "abs" and node[1][0] == "sym" and len(node[1][1]) == 1
    return is_name(node) or (node[0] in ("abs", "div") and not lone and all(map(is_label, node[1:])))


def without_name(node: tuple, other: tuple, named=is_name) -> tuple:
    """The value of `name = value` where the other has no name; of `2 + 3 = 5`, both sides being equal."""
    if node[0] == "list":
        named = [is_equation(item) for item in node[1]]
        other_named = other[0] == "list" and any(is_equation(item) for item in other[1])
        if any(named) and not other_named:
            names = [item[1][0] for item in node[1] if is_equation(item)]
            values = tuple(without_name(item, ("num", 0)) for item in node[1])
            different = len(set(names)) > 1
            if different and names != sorted(names):
                return node
            return ("tuple", values) if different and other[0] in ("tuple", "list") else ("list", values, node[2])
        return node
    if node[0] != "rel" or other[0] == "rel":
        return node
    sides, signs = node[1], node[2]
    if set(signs) != {"="}:
        return node
    values = sides[1:] if named(sides[0]) else sides
    if all(same(a, b) for a, b in pairwise(values)) and (named(sides[0]) or not numeric.symbols(sides)):
        return values[-1]
    return node


def exact_and_rounded(node: tuple) -> list[tuple]:
    """What stands before and after the last sign of `x = 20000/pi ~ 6366.2`; a name alone does not count."""
    before = ("rel", node[1][:-1], node[2][:-1]) if len(node[1]) > 2 else node[1][0]
    return [side for side in (before, node[1][-1]) if not is_name(side)]


def same_equation(gold: tuple, answer: tuple) -> bool:
    """Equal names and values, or zero sets that differ by a constant factor."""
    (gold_left, gold_right), (left, right) = (ends(node) for node in (gold, answer))
    if is_name(gold_left) and left in (gold_left, without_argument(gold_left)):
        return same(gold_right, right)
    if any(
        node[0] in ("tuple", "set", "list", "interval", "union", "matrix", "pm")
        for node in (gold_left, gold_right, left, right)
    ):
        return same(gold_left, left) and same(gold_right, right)
    if not numeric.symbols(gold) | numeric.symbols(answer):
        return same(gold_left, left) and same(gold_right, right)
    return proportional(minus(gold_left, gold_right), minus(left, right)) != 0


def without_argument(node: tuple) -> tuple:
    """C of C(h)."""
    return ("sym", node[1].partition("(")[0]) if node[0] == "sym" else node


def ends(node: tuple) -> tuple[tuple, tuple]:
    """The outer sides of a chain; those between must agree with the last."""
    for side in node[1][1:-1]:
        if not same(side, node[1][-1]):
            raise Undecided("a chain of unequal sides")
    return node[1][0], node[1][-1]


def minus(left: tuple, right: tuple) -> tuple:
    return ("add", (left, ("neg", right)))


def proportional(gold: tuple, answer: tuple) -> int:
    """The sign of the constant c with answer = c * gold, 0 where there is none."""
    names = sorted(numeric.symbols(gold) | numeric.symbols(answer))
    if not names:
        raise Undecided("an equation without unknowns")
    ratios = []
    for point in numeric.points(names, positive=False):
        try:
            a, b = numeric.value(gold, point), numeric.value(answer, point)
        except numeric.Undefined:
            continue
        if numeric.close(a, 0) or numeric.close(b, 0):
            return 0
        ratios.append(b / a)
    if len(ratios) < 3:
        raise Undecided("an equation with a value at too few points")
    if not all(numeric.close(ratio, ratios[0]) for ratio in ratios[1:]):
        return 0
    return 1 if numeric.MP.re(ratios[0]) > 0 else -1


def same_inequality(gold: tuple, answer: tuple) -> bool:
    if numeric.symbols(gold) != numeric.symbols(answer):
        return False
    first, second = as_set_of_numbers(gold), as_set_of_numbers(answer)
    if first[0] != "rel" and second[0] != "rel":
        return same_intervals(first, second)
    if len(gold[2]) > 1 or len(answer[2]) > 1:
        mirrored = ("rel", answer[1][::-1], tuple(FLIPPED[sign] for sign in answer[2][::-1]))
        return any(gold[2] == node[2] and ordered(gold[1], node[1]) for node in (answer, mirrored))
    sign = proportional(minus(*gold[1]), minus(*answer[1]))
    return sign != 0 and gold[2][0] == (answer[2][0] if sign > 0 else FLIPPED[answer[2][0]])


# Sets of numbers


def as_set_of_numbers(node: tuple) -> tuple:
    """Inequalities and set-builders in one unknown as intervals; anything else as it is."""
    if node[0] == "such" and node[2][0] in ("rel", "list"):
        name = node[1][1][0] if node[1][0] == "rel" and node[1][1:] == ((node[1][1][0], REALS), ("in",)) else node[1]
        found = as_set_of_numbers(node[2])
        return found if found[0] != "list" and name[0] == "sym" and numeric.symbols(node[2]) == {name[1]} else node
    if node[0] == "list" and node[2] and all(is_inequality(item) for item in node[1]):
        parts = tuple(as_set_of_numbers(item) for item in node[1])
        same_unknown = len({frozenset(numeric.symbols(item)) for item in node[1]}) == 1
        return ("union", parts) if same_unknown and all(part[0] == "interval" for part in parts) else node
    if node == REALS:
        return ("interval", ("neg", INFINITY), INFINITY, True, True)
    if not is_inequality(node) or len(node[1]) > 3:
        return node
    sides, signs = node[1], node[2]
    if len(sides) == 2:
        if sides[1][0] == "sym" and not numeric.symbols(sides[0]):
            sides, signs = sides[::-1], (FLIPPED[signs[0]],)
        if sides[0][0] != "sym" or numeric.symbols(sides[1]):
            return node
        strict = signs[0] in "<>"
        if signs[0].startswith("<"):
            return ("interval", ("neg", INFINITY), sides[1], True, strict)
        return ("interval", sides[1], INFINITY, strict, True)
    if signs[0].startswith(">"):
        sides, signs = sides[::-1], tuple(FLIPPED[sign] for sign in signs[::-1])
    if sides[1][0] != "sym" or not all(sign.startswith("<") for sign in signs):
        return node
    return ("interval", sides[0], sides[2], signs[0] == "<", signs[1] == "<")


def same_intervals(gold: tuple, answer: tuple) -> bool:
    first, second = (intervals(node) for node in (gold, answer))
    if first is None or second is None:
        return False
    return unordered(first, second, same_interval)


def intervals(node: tuple) -> tuple | None:
    if node[0] == "union":
        parts = [intervals(as_set_of_numbers(part)) for part in node[1]]
        return None if None in parts else tuple(interval for part in parts for interval in part)
    if node[0] == "tuple" and len(node[1]) == 2:
        return (("interval", *node[1], True, True),)
    if node[0] == "set":
        return (node,)
    return (node,) if node[0] == "interval" else None


def same_interval(gold: tuple, answer: tuple) -> bool:
    if gold[0] == "set" or answer[0] == "set":
        return gold[0] == answer[0] and same(gold, answer)
    return gold[3:] == answer[3:] and same(gold[1], answer[1]) and same(gold[2], answer[2])


# Collections


def without_pm(node: tuple) -> tuple:
    """A value with a plus-minus sign as the list of its two values; inside lists and sets, in place."""
    if node[0] in ("list", "set"):
        items = []
        for item in node[1]:
            expanded = without_pm(item)
            items.extend(expanded[1] if expanded[0] == "list" else (expanded,))
        return (node[0], tuple(items), *node[2:])
    if node[0] == "rel" and (is_equation(node) or node[2] == ("!=",)) and _has_pm(node[1][-1]):
        values = without_pm(node[1][-1])[1]
        return ("list", tuple(("rel", (*node[1][:-1], value), node[2]) for value in values), True)
    if node[0] in ("rel", "tuple", "matrix", "interval", "union", "such") or not _has_pm(node):
        return node
    return ("list", (_with_sign(node, 1), _with_sign(node, -1)), True)


def _has_pm(node) -> bool:
    return isinstance(node, tuple) and bool(node) and (node[0] == "pm" or any(_has_pm(part) for part in node))


def _with_sign(node, sign: int):
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        value = _with_sign(node[1], sign)
        return value if node[2] * sign > 0 else ("neg", value)
    return tuple(_with_sign(part, sign) for part in node)


def same_list(gold: tuple, answer: tuple) -> bool:
    """Items without brackets: in any order, each as often as in the gold; with round brackets only in the gold's order."""
    if answer[0] == "tuple":
        return ordered(gold[1], answer[1])
    if answer[0] == "set":
        return unordered(distinct(gold[1]), distinct(answer[1]))
    return answer[0] == "list" and unordered(gold[1], answer[1])


def in_order(node: tuple) -> tuple | None:
    """The items of a tuple, a bare list, or a matrix of one row or column."""
    if node[0] == "matrix" and 1 in (len(node[1]), len(node[1][0])):
        return tuple(value for row in node[1] for value in row)
    return node[1] if node[0] in ("tuple", "list") else None


def scaled(node: tuple) -> tuple:
    """A matrix with the factor or the minus sign that stands before it worked in."""
    factor, inner = None, node
    if node[0] == "neg":
        factor, inner = ("num", Fraction(-1)), scaled(node[1])
    elif node[0] == "mul" and len(node[1]) == 2:
        factor, inner = node[1][0], scaled(node[1][1])
    if factor is None or inner[0] != "matrix":
        return node
    return ("matrix", tuple(tuple(("mul", (factor, value)) for value in row) for row in inner[1]))


def one_sign_each(node: tuple) -> tuple:
    """`x != 1, 4` as `x != 1, x != 4`."""
    if node[0] != "list" or node[1][0][0] != "rel" or node[1][0][2] != ("!=",):
        return node
    name = node[1][0][1][0]
    items = tuple(item if item[0] == "rel" else ("rel", (name, item), ("!=",)) for item in node[1])
    return ("list", items, node[2])


def same_matrix(gold: tuple, answer: tuple) -> bool:
    if answer[0] == "matrix":
        same_shape = [len(row) for row in gold[1]] == [len(row) for row in answer[1]]
        return same_shape and all(ordered(a, b) for a, b in zip(gold[1], answer[1], strict=True))
    items = in_order(gold)
    return answer[0] == "tuple" and items is not None and ordered(items, answer[1])


def ordered(gold: tuple, answer: tuple) -> bool:
    return len(gold) == len(answer) and all(same(a, b) for a, b in zip(gold, answer, strict=True))


def unordered(gold: tuple, answer: tuple, equal=same) -> bool:
    """A one-to-one match; equality is transitive, so the first match will do."""
    if len(gold) != len(answer):
        return False
    if len(gold) > MOST_ITEMS:
        raise Undecided(f"more than {MOST_ITEMS} items")
    left = list(answer)
    for item in gold:
        match = next((i for i, other in enumerate(left) if equal(item, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def distinct(items: tuple) -> tuple:
    if len(items) > MOST_ITEMS:
        raise Undecided(f"more than {MOST_ITEMS} items")
    kept: list[tuple] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return tuple(kept)
