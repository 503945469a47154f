"""What Math-Verify says of two formulas: the last word where ours cannot read or decide. https://github.com/huggingface/Math-Verify"""

from __future__ import annotations

import logging
import re

import math_verify
from math_verify import LatexExtractionConfig

LONGEST = 300
LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![A-Za-z])")
UNEVALUATED = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|frac\{d\}|partial)(?![A-Za-z])")

logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warning that its own time limits are off: the pool has the time
HEAVY = re.compile(r"!|\\binom|\*\*|\^\s*\{?\s*-?\d{4}|\d\s*\}?\s*\^[^-+=,]*\^")


def agrees(gold: str, answer: str) -> bool:
    """Whether Math-Verify finds two formulas equal; False also where it cannot read one of them.

    Its verdict counts only where both use the same letters (it reads m and M as one) and as many primes (it drops them),
    neither is a relation (it compares last sides), the answer has no towers of powers or factorials, and leaves no integral,
    sum or limit to be worked out that the gold has worked out.
    """
    comparable = (
        max(len(gold), len(answer)) <= LONGEST
        and not HEAVY.search(answer)
        and set(LETTERS.findall(gold)) == set(LETTERS.findall(answer))
        and gold.count("'") == answer.count("'")
        and not RELATION.search(gold + answer)
        and bool(UNEVALUATED.search(answer)) <= bool(UNEVALUATED.search(gold))
    )
    if not comparable:
        return False
    read = [
        math_verify.parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        for text in (gold, answer)
    ]
    return all(read) and math_verify.verify(*read, timeout_seconds=None)
