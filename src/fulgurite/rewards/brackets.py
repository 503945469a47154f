"""Groups, tuples, intervals, sets and matrices, as `expression.Reader` meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .latex import Unreadable

if TYPE_CHECKING:
    from .expression import Reader

CLOSERS = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
MATRICES = {"pmatrix", "bmatrix", "matrix", "array", "smallmatrix", "Bmatrix"}


def bracketed(reader: Reader, value: str) -> tuple:
    if value == "|":
        return absolute(reader)
    if value == "{":
        reader.take()
        found = reader.statement(("}",))
        reader.take("}")
        return ("set", found[1]) if found[0] == "list" else found
    if value in ("(", "["):
        return closed(reader, value)
    raise Unreadable(f"unexpected {value!r}")


def absolute(reader: Reader) -> tuple:
    reader.take()
    reader.bars += 1
    found = reader.sum()
    reader.bars -= 1
    reader.take("|")
    return ("abs", found)


def closed(reader: Reader, opener: str) -> tuple:
    """A group, tuple, interval, set or set-builder, by its brackets."""
    if opener in "([":
        reader.take()
    if opener == r"\{" and reader.accept(r"\}"):
        return ("set", ())
    reader.bars += opener == r"\{"
    found = reader.statement((")", "]", r"\}", r"\rangle", "|", ":"))
    reader.bars -= opener == r"\{"
    if opener == r"\{" and reader.accept("|", ":"):
        conditions = reader.statement((r"\}",))
        reader.take(r"\}")
        return ("such", found, conditions)
    closer = reader.take()
    items = found[1] if found[0] == "list" else (found,)
    if closer not in CLOSERS.values() or (opener in "([") != (closer in ")]"):
        raise Unreadable(f"{opener} closed by {closer}")
    if opener in "([":
        if found[0] == "list" and (opener, closer) == ("[", "]") and all(item[0] == "rel" for item in items):
            return found
        if found[0] == "list" and len(items) == 2 and (opener, closer) != ("(", ")"):
            return ("interval", items[0], items[1], opener == "(", closer == ")")
        if (opener == "(") != (closer == ")"):
            raise Unreadable(f"{opener} closed by {closer}")
        if found[0] != "list":
            return found
        return ("tuple", items)
    return ("set", items) if opener == r"\{" else ("tuple", items)


def matrix(reader: Reader) -> tuple:
    reader.take("{")
    name = reader.take()
    reader.take("}")
    if name not in MATRICES:
        raise Unreadable(f"the environment {name}")
    if name == "array":
        reader.take("{")
        while reader.take() != "}":
            pass
    rows: list[list[tuple]] = [[]]
    while True:
        rows[-1].append(reader.sum())
        if reader.accept("&"):
            continue
        if not reader.accept("\\\\") or reader.peek() == r"\end":
            break
        rows.append([])
    reader.take(r"\end")
    reader.take("{")
    reader.take(name)
    reader.take("}")
    if len({len(row) for row in rows}) != 1:
        raise Unreadable("a matrix with rows of unequal length")
    return ("matrix", tuple(tuple(row) for row in rows))
