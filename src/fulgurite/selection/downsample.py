"""Which completions of a group are trained on: those that differ most, or the best.

    max_variance    the `keep` of a group whose values have the largest variance: some of the highest and the rest of the lowest
    top             the `keep` highest

Of equal variances the one with most of the highest wins; of equal values the row that comes first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rule = Literal["max_variance", "top"]


def downsample(values: Tensor, group_index: Tensor, keep: int, rule: Rule) -> Tensor:
    """(N,) bool: the rows that stay, `keep` of every group, or all of a smaller one.

    Args:
        values: (N,).
        group_index: (N,) integers, rows with the same number are one group.
    """
    kept = torch.zeros_like(group_index, dtype=torch.bool)
    for group in group_index.unique():
        rows = (group_index == group).nonzero().flatten()
        best_first = rows[torch.argsort(values[rows], descending=True, stable=True)]
        worst_first = rows[torch.argsort(values[rows], stable=True)]
        count = min(keep, len(rows))
        highest = count if rule == "top" else _most_spread(values[best_first].double(), count)
        kept[best_first[:highest]] = True
        kept[worst_first[: count - highest]] = True
    return kept


def _most_spread(descending: Tensor, count: int) -> int:
    """How many of the `count` values with the largest variance are the highest ones."""
    spreads = []
    for highest in range(count, -1, -1):
        chosen = torch.cat([descending[:highest], descending[len(descending) - count + highest :]])
        spreads.append((chosen - chosen.mean()).square().sum())
    return count - int(torch.stack(spreads).argmax())
