"""maj@k: the majority vote of k of a prompt's n completions, exactly: the mean over all C(n, k) subsets.

Each answer has as many votes as completions that give it; None does not vote. The answer with the most votes wins; of several
with as many, one is drawn, so a tie counts the share of right answers among the tied. Nobody votes: 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the vote of k completions, drawn without replacement, is right.

    Args:
        answers: of the n completions; equal answers vote together.
        correct: whether each is right. Where equal answers were judged differently, their mean counts.

    Raises:
        ValueError: k is below 1 or above n, or the lengths differ.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"k is {k} with {n} completions of a prompt; expected 1 to {n}")
    if len(correct) != n:
        raise ValueError(f"there are {n} answers and {len(correct)} judgements; expected as many")
    votes = Counter(answer for answer in answers if answer is not None)
    right = Counter(answer for answer, ok in zip(answers, correct, strict=True) if answer is not None and ok)
    total = sum(Fraction(right[answer], votes[answer]) * _wins(answer, votes, n, k) for answer in right)
    return float(total / comb(n, k))


def _wins(answer: Hashable, votes: Counter, n: int, k: int) -> Fraction:
    """The number of subsets of k that an answer wins, one in which t others tie with it counted 1 / (1 + t)."""
    others = [count for other, count in votes.items() if other != answer]
    wins = Fraction(0)
    for most in range(1, min(votes[answer], k) + 1):
        rest = _subsets(others, n - votes.total(), most, k - most)
        wins += comb(votes[answer], most) * sum(Fraction(ways, 1 + tied) for tied, ways in enumerate(rest))
    return wins


def _subsets(others: Sequence[int], silent: int, most: int, size: int) -> list[int]:
    """[t]: subsets of `size` other completions in which t answers have `most` votes and none has more.

    The coefficient of x^size in a product of polynomials, one for each answer and one for the silent completions; x is so
    large a power of two that no coefficient reaches the next, so whole numbers multiply polynomials.
    """
    bits = silent + sum(others) + 1
    cut, last = (1 << bits * (size + 1)) - 1, (1 << bits) - 1
    ways = [_binomials(silent, size, bits)] + [0] * (size // most)
    for count in others:
        fewer, tie = _binomials(count, min(most - 1, size), bits), comb(count, most) << bits * most
        ways = [(here * fewer + before * tie) & cut for here, before in zip(ways, [0, *ways], strict=False)]
    return [(product >> bits * size) & last for product in ways]


def _binomials(count: int, degree: int, bits: int) -> int:
    """(1 + x)^count without the powers above `degree`, at x = 2^bits."""
    return sum(comb(count, drawn) << bits * drawn for drawn in range(degree + 1))
