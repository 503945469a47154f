"""Numbers, letters and words, as `expression.Reader` meets them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from .latex import Token, Unreadable
from .names import FUNCTIONS

if TYPE_CHECKING:
    from .expression import Reader

NUMERALS = {"two": "2", "three": "3", "eight": "8", "ten": "10", "sixteen": "16"}
# Words that are no products of letters, except between signs: sinh(at).
ENGLISH = """the and for are has his her was one two six ten not yes you can any all but how its our out use who why
per did get had let see she he is it in on of to at as be by we an no so if my or do up me us am go"""
SHORT_WORDS = set(ENGLISH.split())
APPLIED = set("fghuFGHPV")


def number(reader: Reader, value: str) -> tuple:
    reader.take()
    if reader.accept("_"):
        base = subscript(reader).strip("()")
        return ("based", value, NUMERALS.get(base, base))
    if "." in value and reader.peek() in (r"\overline", r"\bar"):
        reader.take()
        reader.take("{")
        block = reader.take()
        reader.take("}")
        if not block.isdigit():
            raise Unreadable("a repeating block that is no digits")
        places = len(value.split(".")[1])
        return ("num", Fraction(value.rstrip(".")) + Fraction(int(block), (10 ** len(block) - 1) * 10**places))
    if reader.peek() in ("e", "E") and not reader.tokens[reader.place].spaced:
        sign = reader.peek(1) if reader.peek(1) in ("-", "+") else ""
        digits = reader.peek(1 + bool(sign))
        if digits.isdigit() and len(digits) < 4 and not reader.tokens[reader.place + 1].spaced:
            reader.place += 2 + bool(sign)
            return ("num", Fraction(value) * Fraction(10) ** int(sign + digits))
    return ("num", Fraction(value.rstrip(".")))


def subscript(reader: Reader) -> str:
    if not reader.accept("{"):
        if reader.kind() in ("number", "word"):
            reader.cut()
        return reader.take()
    parts = []
    while reader.peek() != "}":
        parts.append(reader.take())
        if len(parts) > 12:
            raise Unreadable("a long subscript")
    reader.take("}")
    return "".join(parts)


def word(reader: Reader, value: str) -> tuple:
    if value in FUNCTIONS or value == "sqrt":
        return reader.command("\\" + value)
    if value in ("pi", "infinity", "inf", "infty"):
        reader.take()
        return ("const", "pi" if value == "pi" else "inf")
    signs = {reader.kind(-1) if reader.place else "", reader.kind(1)}
    if len(value) > 3 or (
        value.lower() in SHORT_WORDS and not ("sign" in signs and signs <= {"sign", "command", "number", ""})
    ):
        raise Unreadable(f"the word {value!r}")
    if len(value) > 1:  # a product of letters, taken one by one so that powers bind to the last
        token = reader.tokens[reader.place]
        reader.tokens[reader.place : reader.place + 1] = [
            Token("word", letter, token.spaced and not i) for i, letter in enumerate(value)
        ]
        value = value[0]
    reader.take()
    return letter(reader, value)


def text(reader: Reader, value: str) -> tuple:
    if value in FUNCTIONS:
        return reader.command("\\" + value)
    if len(value) == 1 and value.isalpha():
        reader.take()
        return letter(reader, value)
    raise Unreadable(f"the word {value!r}")


def letter(reader: Reader, name: str) -> tuple:
    """A symbol with its subscript; a function application such as f(2) or I(0) is one opaque symbol."""
    if reader.accept("_"):
        name += "_" + subscript(reader)
    elif name in ("e", "i"):
        return ("const", name)
    while reader.accept("'"):
        name += "'"
    if reader.peek() == "(":
        inner = []
        ahead = 1
        while reader.peek(ahead) not in (")", "") and ahead < 12:
            inner.append(reader.peek(ahead))
            ahead += 1
        if reader.peek(ahead) == ")" and inner and (name[0] in APPLIED or len(inner) == 1 and name[0].isupper()):
            reader.place += ahead + 1
            name += f"({''.join(inner)})"
    return ("sym", name)
