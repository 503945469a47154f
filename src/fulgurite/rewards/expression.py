"""Reads mathematics into nested tuples: `("add", (a, b))`, `("num", Fraction)`, `("sym", "x")`, `("interval", ...)`, ...

Nothing is evaluated here. What cannot be read as mathematics raises `Unreadable`; prose does.

A statement is a list of items, an item a chain of relations, a side of a relation an expression:

    ("list", items)  ("rel", sides, signs)  ("set", items)  ("tuple", items)  ("interval", low, high, open_low, open_high)
    ("union", parts) ("matrix", rows)       ("such", item, conditions)
and scalars: num based sym const add mul div neg pow root log fn fact binom abs pct deg pm
"""

from __future__ import annotations

from fractions import Fraction

from .atoms import letter, number, subscript, text, word
from .brackets import bracketed, closed, matrix
from .latex import Token, Unreadable, tokens
from .names import DECORATIONS, FUNCTIONS, GREEK_LETTERS

RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">="}
RELATIONS |= {r"\ne": "!=", r"\in": "in", r"\approx": "~", r"\equiv": "=="}
SUMS, PRODUCTS = {"+", "-", r"\pm", r"\mp"}, {"*", "/", r"\cdot", r"\times", r"\div"}
ENDS = {r"\cup", r"\}", r"\rangle", r"\\", r"\end", r"\vee", r"\wedge", r"\lor", r"\land"} | SUMS | PRODUCTS | set(RELATIONS)
ATOMS = {"number": number, "word": word, "text": text, "sign": bracketed}
DEEPEST = 60


def read(text: str) -> tuple:
    """The statement that plain text (`latex.plain`) makes.

    Raises:
        Unreadable: it is none.
    """
    reader = Reader(tokens(text))
    found = reader.statement(())
    if reader.place < len(reader.tokens):
        raise Unreadable(f"unexpected {reader.tokens[reader.place].value!r}")
    return found


class Reader:
    """Recursive descent over tokens."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.place, self.depth, self.bars = found, 0, 0, 0

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place].value if place < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place].kind if place < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        value = self.peek()
        if self.place >= len(self.tokens) or (wanted and value != wanted):
            raise Unreadable(f"expected {wanted or 'more'}, saw {value or 'the end'}")
        self.place += 1
        return value

    def accept(self, *wanted: str) -> bool:
        if self.place < len(self.tokens) and self.peek() in wanted and self.kind() != "text":
            self.place += 1
            return True
        return False

    def cut(self) -> None:
        """Makes the first character of a number or word a token of its own: \\frac12, x_12."""
        kind, value, spaced = self.tokens[self.place]
        if len(value) > 1:
            self.tokens[self.place : self.place + 1] = [Token(kind, value[0], spaced), Token(kind, value[1:], False)]

    # Statements

    def statement(self, enders: tuple[str, ...]) -> tuple:
        """Items joined by commas, semicolons, `and`, `or`; one alone is returned as it is."""
        items, joined_by_or = [self.item()], False
        while self.place < len(self.tokens) and self.peek() not in enders:
            joiner = self.peek().lower()
            if joiner not in (",", ";", "and", "or", r"\text", r"\vee", r"\wedge", r"\lor", r"\land"):
                raise Unreadable(f"unexpected {joiner!r}")
            self.place += 1
            joined_by_or |= joiner in ("or", r"\vee", r"\lor")
            if self.peek().lower() in ("and", "or"):  # 1, 2, and 3
                joined_by_or |= self.take().lower() == "or"
            items.append(self.item())
        return items[0] if len(items) == 1 else ("list", tuple(items), joined_by_or)

    def item(self) -> tuple:
        sides, signs = [self.side()], []
        while self.kind() != "text" and self.peek() in RELATIONS:
            signs.append(RELATIONS[self.take()])
            sides.append(self.side())
        return ("rel", tuple(sides), tuple(signs)) if signs else sides[0]

    def side(self) -> tuple:
        parts = [self.sum()]
        while self.accept(r"\cup"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else ("union", tuple(parts))

    # Scalars

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"nested more than {DEEPEST} deep")
        terms = [self.signed()]
        while self.kind() != "text" and self.peek() in SUMS:
            terms.append(self.signed())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def signed(self) -> tuple:
        negative, both = False, ""
        while self.kind() != "text" and self.peek() in SUMS:
            sign = self.take()
            negative ^= sign == "-"
            if sign in (r"\pm", r"\mp"):
                both = sign
        value = self.product()
        value = ("neg", value) if negative else value
        return ("pm", value, 1 if both == r"\pm" else -1) if both else value

    def product(self) -> tuple:
        value = self.power()
        while self.place < len(self.tokens):
            if self.kind() != "text" and self.peek() in PRODUCTS:
                sign = self.take()
                negative = False
                while self.peek() in ("-", "+"):
                    negative ^= self.take() == "-"
                right = self.power()
                right = ("neg", right) if negative else right
                value = ("div", value, right) if sign in ("/", r"\div") else ("mul", (value, right))
            elif self.starts_factor():
                value = self.beside(value)
            else:
                break
        return value

    def beside(self, left: tuple) -> tuple:
        """A product without a sign, or a mixed number: 1\\frac{4}{5}, 3 1/2."""
        whole = left[0] == "num" and left[1].denominator == 1
        digit = self.kind() == "number"
        if digit and not (whole and self.tokens[self.place].spaced and self.peek(1) == "/" and self.kind(2) == "number"):
            raise Unreadable("two numbers side by side")
        if digit:
            above, _, below = self.take(), self.take(), self.take()
            if not (above.isdigit() and below.isdigit() and int(above) < int(below)):
                raise Unreadable("two numbers side by side")
            return ("num", left[1] + Fraction(int(above), int(below)))
        fraction = self.peek() == r"\frac"
        right = self.power()
        if whole and fraction and right[0] == "div" and all(p[0] == "num" and p[1].denominator == 1 for p in right[1:]):
            above, below = right[1][1], right[2][1]
            if 0 < above < below:
                return ("num", left[1] + above / below)
        return ("mul", (left, right))

    def starts_factor(self) -> bool:
        value, kind = self.peek(), self.kind()
        if kind in ("number", "word"):
            return value.lower() not in ("and", "or")
        if kind == "text":
            return value.strip().isalpha() and (len(value.strip()) == 1 or value.strip() in FUNCTIONS)
        if kind == "sign":
            return value in "({[" or (value == "|" and not self.bars)
        return kind == "command" and value not in ENDS

    def power(self) -> tuple:
        return self.raised(self.atom())

    def raised(self, value: tuple) -> tuple:
        """Postfix signs: powers, factorials, percent, degrees, primes."""
        while self.place < len(self.tokens) and self.kind() == "sign":
            if self.peek() == "^":
                self.take()
                if self.peek() == r"\circ":
                    self.take()
                    value = ("deg", value)
                elif self.peek() == "{" and self.peek(1) == r"\prime" or self.peek() == r"\prime":
                    braced = self.accept("{")
                    primes = 0
                    while self.accept(r"\prime"):
                        primes += 1
                    if braced:
                        self.take("}")
                    value = self.primed(value, primes)
                else:
                    value = ("pow", value, self.exponent())
            elif self.accept("!"):
                value = ("fact", value)
            elif self.accept("%"):
                value = ("pct", value)
            elif self.accept("'"):
                value = self.primed(value, 1)
            else:
                break
        return value

    def primed(self, value: tuple, count: int) -> tuple:
        if value[0] != "sym":
            raise Unreadable("a prime that belongs to no letter")
        return ("sym", value[1] + "'" * count)

    def exponent(self) -> tuple:
        """Like an argument, but x^10 is meant to be x^{10}."""
        if self.kind() == "number":
            return number(self, self.peek())
        if self.peek() == "-" and self.kind(1) == "number":
            self.take()
            return ("neg", number(self, self.peek()))
        return self.argument()

    def argument(self) -> tuple:
        """What a power or \\frac takes: a group, one digit, one letter, a command."""
        if self.accept("{"):
            value = self.sum()
            self.take("}")
            return value
        if self.kind() in ("number", "word") and self.peek() not in FUNCTIONS:
            self.cut()
        if self.accept("-"):
            return ("neg", self.argument())
        return self.atom()

    def atom(self) -> tuple:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"nested more than {DEEPEST} deep")
        kind, value = self.kind(), self.peek()
        if kind == "command":
            result = self.command(value)
        elif kind in ATOMS:
            result = ATOMS[kind](self, value)
        else:
            raise Unreadable("the end where a value was expected")
        self.depth -= 1
        return result

    def command(self, value: str) -> tuple:
        self.take()
        name = value[1:]
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name == "binom":
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            degree = ("num", Fraction(2))
            if self.accept("["):
                degree = self.sum()
                self.take("]")
            return ("root", degree, self.argument())
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty"):
            return ("const", {"pi": "pi", "infty": "inf"}[name])
        if name in GREEK_LETTERS:
            return letter(self, value)
        if value in (r"\{", r"\langle"):
            return closed(self, value)
        if name == "begin":
            return matrix(self)
        if value in DECORATIONS:
            return ("sym", f"{value}{{{subscript(self)}}}")
        if name == "emptyset":
            return ("set", ())
        if name == "$":
            raise Unreadable("money inside an expression")
        raise Unreadable(f"the command {value}")

    def function(self, name: str) -> tuple:
        base = power = None
        while self.peek() in ("^", "_"):
            if self.take() == "_":
                base = self.argument()
            else:
                power = self.argument()
        if self.peek() in ("(", "{", "["):
            inside = bracketed(self, self.peek())
        else:
            negative = self.accept("-")
            inside = self.power()
            while (
                self.kind() in ("number", "word")
                or self.peek() in (r"\frac", r"\sqrt", r"\pi")
                or self.peek()[1:] in GREEK_LETTERS
            ):
                if self.peek().lower() in ("and", "or") or self.peek() in FUNCTIONS:
                    break
                inside = self.beside(inside)
            inside = ("neg", inside) if negative else inside
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}.get(name, name)
        if power == ("neg", ("num", Fraction(1))) and name in ("sin", "cos", "tan"):
            name, power = "arc" + name, None
        value = ("log", base, inside) if name == "log" else ("fn", name, inside)
        return ("pow", value, power) if power else value
