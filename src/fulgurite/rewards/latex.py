"""LaTeX and Unicode mathematics in one plain spelling, and its tokens."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

SPELLINGS = {
    "−–—‒﹣－": "-",
    "×✕": r"\times ",
    "·⋅∙•": r"\cdot ",
    "÷": "/",
    "∕⁄": "/",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∞": r"\infty ",
    "≤⩽≦": r"\le ",
    "≥⩾≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "°º˚": r"^\circ ",
    "′’": "'",
    "″": "''",
    "“”": '"',
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "∣": "|",
    "｛": r"\{",
    "｝": r"\}",
    "π𝜋": r"\pi ",
    "…": r"\ldots ",
    "，、": ",",
    "．。": ".",
    "＋": "+",
    "＝": "=",
    "（": "(",
    "）": ")",
    "％": "%",
    "¢": r"\text{ cents}",
    "／": "/",
}
GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi
omega"""
CHARACTERS = {ord(char): text for chars, text in SPELLINGS.items() for char in chars}
CHARACTERS |= {
    ord(unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if name == 'lambda' else name.upper()}")): rf"\{name} "
    for name in GREEK.split()
}
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
RAISED_RUN, LOWERED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
REWRITES = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"(?<!\\)\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=\s|[\\()\[\]|{}<>./]|$)", ""),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"(?<=\d)(?:,\\!\s*|\{,\}|\\,)(?=\d{3}(?!\d))", ""),
        (r",\\!\s*(?=\d)", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)space(?![A-Za-z])", " "),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|mathstrut|hfill)(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac "),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom "),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])", r"\\le "),
        (r"\\neq(?![A-Za-z])", r"\\ne "),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"(?<![<>=!])>=", r"\\ge "),
        (r"(?<![<>=!])<=", r"\\le "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])", "|"),
        (r"\\(?:mathrm|operatorname\*?|text(?:rm|bf|it|sf|tt|normal)?|mbox|hbox|textup|mathsf)\s*\{", r"\\text{"),
        (r"\\text\{\s*([ei]|\\[A-Za-z]+|-?[\d.,]*\d)\s*\}", r" \1 "),
        (r"\\text\{([^{}]*\w)\s+(and|or)\s*\}", r"\\text{\1}\\text{ \2 }"),
        (r"\\(?:mathbf|boldsymbol|bm|mathit|mathnormal|bold)\s*\{", "{"),
        (r"\\(?:rm|bf|it)(?![A-Za-z])", " "),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\\(?:varnothing|oslash|phi\s*$)", r"\\emptyset "),
        (r"\\%", "%"),
        (r"^\s*\*\*(.+)\*\*\s*$", r"\1"),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({-])", "^"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"\\(?:cdots|dots|ldots)(?![A-Za-z])", r"\\ldots "),
    )
]
PHRASES = {
    r"\emptyset": re.compile(r"(?:\\text\{)?\s*no solutions?\s*\.?\s*\}?\s*(?::?\s*\\emptyset)?", re.IGNORECASE),
    r"\mathbb{R}": re.compile(r"(?:\\text\{)?\s*all real(?:s| numbers)\s*\}?", re.IGNORECASE),
}
ROOT_SIGN = re.compile(r"√\s*(\d+)")
DOLLAR = re.compile(r"(?<!\\)\$")
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>\\text\{[^{}]*\})|(?P<number>\d+\.?\d*|\.\d+)|(?P<command>\\[A-Za-z]+|\\.)|(?P<word>[A-Za-z]+)|(?P<sign>.)",
    re.DOTALL,
)


class Unreadable(ValueError):
    """Text that is no expression this grader can read."""


class Token(NamedTuple):
    """`kind` is text, number, command, word or sign; `spaced`: white space stands before it."""

    kind: str
    value: str
    spaced: bool


def plain(text: str) -> str:
    """One spelling for Unicode signs, spacing, sizes and fonts; dollar signs around mathematics are gone; one that means money
    is `\\$`."""
    text = RAISED_RUN.sub(lambda run: "^{" + run[0].translate(RAISED) + "}", text)
    text = LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(LOWERED) + "}", text)
    text = ROOT_SIGN.sub(r"\\sqrt{\1}", text)
    kept = []
    for char in text:
        category = unicodedata.category(char) if ord(char) > 126 or ord(char) < 32 else "Ll"
        if category == "Nd":
            kept.append(str(unicodedata.decimal(char)))
        elif category == "No" and unicodedata.decomposition(char).startswith("<fraction>"):
            above, _, below = unicodedata.normalize("NFKC", char).partition("⁄")
            kept.append(rf" \frac{{{above}}}{{{below}}}")
        elif category.startswith("Z") or char in "\t\n\r":
            kept.append(" ")
        elif category not in ("Cf", "Cc"):
            kept.append(char)
    out = "".join(kept).translate(CHARACTERS)
    for pattern, replacement in REWRITES:
        out = pattern.sub(replacement, out)
    out = DOLLAR.sub(" " if len(DOLLAR.findall(out)) % 2 == 0 else r"\\$", out)
    out = re.sub(r"^\s*(?:\\approx|\\sim(?![A-Za-z])|~|=(?!=))", "", out)
    out = out.strip().rstrip(".,;:。 ").strip()
    return next((sign for sign, phrase in PHRASES.items() if phrase.fullmatch(out)), out)


def tokens(text: str) -> list[Token]:
    """The tokens of plain text."""
    found, spaced = [], False
    for match in TOKEN.finditer(text):
        if match.lastgroup == "space":
            spaced = True
            continue
        value = match[0][6:-1].strip() if match.lastgroup == "text" else match[0]
        if value:
            found.append(Token(match.lastgroup, value, spaced))
        spaced = False
    return found
