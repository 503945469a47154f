"""Rewards for the shape of a completion, to stand beside a task's own.

Plain functions: an argument with the name of a fact of the completion (`data.rewards.FACTS`) gets it, the others come from the
config.
"""

from __future__ import annotations

import re


def matches(text: str, pattern: str) -> float:
    """1 if the regular expression is found in the completion, else 0; a dot is any character, `^` and `$` are its ends.

    A pattern that takes too long on some text costs that completion its verdict, and nothing else.
    """
    return float(re.search(pattern, text, re.DOTALL) is not None)


def contains(text: str, words: str) -> float:
    """1 if these words stand in the completion exactly once, else 0."""
    return float(text.count(words) == 1)


def length(tokens: int, limit: int) -> float:
    """-tokens / limit, at least -1: every token costs the same."""
    return max(-1.0, -tokens / limit)


def soft_overlong(tokens: int, limit: int, buffer: int) -> float:
    """The soft overlong punishment of DAPO, arXiv 2503.14476: 0 up to `limit - buffer` tokens, then falling linearly to -1 at
    `limit`, and -1 beyond."""
    return max(-1.0, min(0.0, (limit - buffer - tokens) / buffer))
