"""Are two scalar expressions equal? Exactly where both are rational, else by their values at fixed points, to 40 of 60 digits.

No computer algebra runs here, so no expression takes long: numbers and exponents are bounded before anything is computed.
"""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import chain

from mpmath import MPContext

MP = MPContext()
MP.dps = 60
AGREEING_DIGITS = 40
LARGEST_EXPONENT = 10_000
MOST_BITS = 40_000
LARGEST_FACTORIAL = 1_000
POINTS = 4
MATH_FUNCTIONS = {
    "sin": MP.sin, "cos": MP.cos, "tan": MP.tan, "cot": MP.cot, "sec": MP.sec, "csc": MP.csc,
    "arcsin": MP.asin, "arccos": MP.acos, "arctan": MP.atan, "arccot": MP.acot, "arcsec": MP.asec, "arccsc": MP.acsc,
    "sinh": MP.sinh, "cosh": MP.cosh, "tanh": MP.tanh, "exp": MP.exp, "ln": MP.log,
}  # fmt: skip
CONSTANTS = {"pi": MP.pi, "e": MP.e, "i": MP.mpc(0, 1)}
LOG_BASE = MP.mpf("7.391")  # of a logarithm that names no base: neither 10 nor e, so that only identities of any base hold


class Undecided(ValueError):
    """The values cannot be compared here."""


class TooLarge(ValueError):
    """A value that would take long to compute; nobody else is asked to try."""


class Undefined(ValueError):
    """The expression has no value at a point."""


def equal(gold: tuple, answer: tuple) -> bool:
    """Whether an answer has the gold's value wherever the gold has one.

    Raises:
        Undecided: not a scalar, or with a value at no point. TooLarge.
    """
    if gold == answer:
        return True
    exact_gold, exact_answer = exact(gold), exact(answer)
    if exact_gold is not None and exact_answer is not None:
        return exact_gold == exact_answer
    names = sorted(symbols(gold) | symbols(answer))
    compared = 0
    for point in points(names, positive=_has_root_of_symbol(gold)) if names else ({},):
        try:
            wanted = value(gold, point)
        except Undefined:
            continue
        if names and not _is_real(wanted) and not _has_i(gold):
            continue
        compared += 1
        try:
            if not close(wanted, value(answer, point)):
                return False
        except Undefined:
            return False
    if compared < min(2, POINTS if names else 1):
        raise Undecided("the gold has a value at too few points")
    return True


def points(names: list[str], positive: bool) -> list[dict]:
    """Fixed points, the same in every process: first positive ones, then of both signs, then whole numbers."""
    draw = random.Random(20240229)
    found = []
    for number in range(POINTS + 2):
        point = {}
        for place, name in enumerate(names):
            size = MP.mpf(draw.randrange(10**20, 3 * 10**20)) / 10**20
            sign = -1 if number >= POINTS // 2 and not positive and draw.random() < 0.6 else 1
            point[name] = MP.mpf(place + 2 + number) if number >= POINTS else sign * size
        found.append(point)
    return found


def close(a, b) -> bool:
    """Equal to `AGREEING_DIGITS` digits."""
    if not (MP.isfinite(a) and MP.isfinite(b)):
        return bool(a == b)
    size = max(abs(a), abs(b))
    if min(abs(a), abs(b)) == 0:
        return bool(size < MP.mpf(10) ** -50)
    return bool(abs(a - b) <= size * MP.mpf(10) ** -AGREEING_DIGITS)


def symbols(node) -> set[str]:
    if not isinstance(node, tuple) or not node:
        return set()
    if node[0] == "sym":
        return {node[1]}
    return set(chain.from_iterable(symbols(part) for part in node if isinstance(part, tuple)))


def _has(node, test) -> bool:
    return isinstance(node, tuple) and bool(node) and (test(node) or any(_has(part, test) for part in node))


def _has_i(node: tuple) -> bool:
    return _has(node, lambda n: n == ("const", "i"))


def _has_root_of_symbol(node: tuple) -> bool:
    """Roots of symbols are read for positive values, as textbooks do."""

    def root(n):
        fractional = n[0] == "pow" and (exact(n[2]) or Fraction(1)).denominator > 1
        return (n[0] == "root" or fractional) and bool(symbols(n[2] if n[0] == "root" else n[1]))

    return _has(node, root)


def _is_real(number) -> bool:
    return abs(MP.im(number)) <= MP.mpf(10) ** -45 * max(1, abs(number))


def exact(node: tuple) -> Fraction | None:
    """The value of a rational expression; None where it is none or would be too large."""
    try:
        return _exact(node)
    except ZeroDivisionError:
        return None


def _exact(node: tuple) -> Fraction | None:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind not in ("add", "mul", "div", "neg", "pow", "pct", "fact", "binom", "abs"):
        return None
    parts = [_exact(part) for part in (node[1] if kind in ("add", "mul") else node[1:])]
    if any(part is None or _bits(part) > MOST_BITS for part in parts):
        return None
    a, b = parts[0], parts[-1]
    if kind == "add":
        return sum(parts, Fraction(0))
    if kind == "mul":
        product = Fraction(1)
        for part in parts:
            product *= part
        return product
    if kind == "div":
        return a / b
    if kind == "neg":
        return -a
    if kind == "abs":
        return abs(a)
    if kind == "pct":
        return a / 100
    if kind == "pow":
        small = (a or b > 0) and b.denominator == 1 and abs(b) <= MOST_BITS and abs(b) * _bits(a) <= MOST_BITS
        return a**b if small else None
    if kind == "fact":
        return Fraction(_product(1, int(a))) if a.denominator == 1 and 0 <= a <= LARGEST_FACTORIAL else None
    if a.denominator == b.denominator == 1 and 0 <= b <= a <= LARGEST_FACTORIAL:
        return Fraction(_product(int(a - b) + 1, int(a)), _product(1, int(b)))
    return None


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _product(low: int, high: int) -> int:
    result = 1
    for factor in range(low, high + 1):
        result *= factor
    return result


def value(node: tuple, point: dict):
    """The value at a point, to 60 digits.

    Raises:
        Undefined: it has none there. Undecided: it is no scalar. TooLarge.
    """
    try:
        return _value(node, point)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, (Undecided, Undefined, TooLarge)):
            raise
        raise Undefined(str(error)) from None


def _value(node: tuple, point: dict):
    kind = node[0]
    if kind == "num":
        if _bits(node[1]) > MOST_BITS:
            raise TooLarge("a number of too many digits")
        return MP.mpf(node[1].numerator) / node[1].denominator
    if kind == "sym":
        return point[node[1]]
    if kind == "const":
        if node[1] not in CONSTANTS:
            raise Undecided("infinity inside an expression")
        return CONSTANTS[node[1]] * 1
    if kind in ("add", "mul"):
        parts = [_value(part, point) for part in node[1]]
        return MP.fsum(parts) if kind == "add" else MP.fprod(parts)
    if kind == "fn":
        return _function(node[1], _value(node[2], point))
    if kind == "log":
        return _bounded_log(_value(node[2], point)) / _bounded_log(_value(node[1], point) if node[1] else LOG_BASE)
    if kind not in ("div", "neg", "pow", "root", "fact", "binom", "abs", "pct", "deg"):
        raise Undecided(f"{kind} is no scalar")
    parts = [_value(part, point) for part in node[1:]]
    a, b = parts[0], parts[-1]
    if kind == "div":
        return a / b
    if kind == "neg":
        return -a
    if kind == "abs":
        return abs(a)
    if kind == "pct":
        return a / 100
    if kind == "deg":
        return a * MP.pi / 180
    if kind == "pow":
        return _power(a, b)
    if kind == "root":
        if MP.im(b) == 0 and b < 0 and MP.im(a) == 0 and a % 2 == 1:
            return -_power(-b, 1 / a)
        return _power(b, 1 / a)
    if abs(a) > LARGEST_FACTORIAL or abs(b) > LARGEST_FACTORIAL:
        raise TooLarge("a large factorial")
    return MP.factorial(a) if kind == "fact" else MP.binomial(a, b)


def _power(a, b):
    if a == 0:
        if MP.re(b) <= 0:
            raise Undefined("a power of zero")
        return MP.mpf(0)
    if abs(b) > LARGEST_EXPONENT or abs(b) * abs(MP.log(a)) > LARGEST_EXPONENT * 10:
        raise TooLarge("a large power")
    return MP.power(a, b)


def _bounded_log(a):
    if a == 0:
        raise Undefined("the logarithm of zero")
    return MP.log(a)


def _function(name: str, a):
    if name not in MATH_FUNCTIONS:
        raise Undecided(f"{name} of a value")
    if name == "ln" and a == 0:
        raise Undefined("the logarithm of zero")
    if abs(a) > LARGEST_EXPONENT:
        raise TooLarge(f"{name} of a large value")
    return MATH_FUNCTIONS[name](a)
