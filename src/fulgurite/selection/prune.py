"""Which completions are worth training on: those whose advantage is large (CPPO, arXiv 2503.22342, step 4 of its method).

    top-k        of n rows keep the k = max(1, floor(n (1 - rate))) with the largest |A|        eq. 8 to 10
    threshold    keep the rows with |A| >= threshold                                            eq. 7

n is a group, or the whole update. Advantages are those of the full groups and are not centred again.

Differs from the paper and from the authors' code:
- the paper takes the top k of each group, their code that of a device's or of the whole batch: here it is a setting;
- k is exact for every rate, 1 of 10 at 0.9 too, where the code's integers lose or gain rows, and never 0;
- of equal |A| the row that comes first stays; the code leaves ties to the device.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["group", "global"]
Removed = Literal["smallest", "largest"]


def kept_count(rows: int, rate: float) -> int:
    """How many of `rows` rows stay; the share lost to rounding in `rows * (1 - rate)` costs no row."""
    return max(1, math.floor(rows * (1 - rate) + 1e-9)) if rows else 0


def prune(
    advantages: Tensor,
    group_index: Tensor,
    *,
    rate: float = 0.0,
    threshold: float | None = None,
    scope: Scope = "group",
    remove: Removed = "smallest",
    drop_zero: bool = False,
) -> Tensor:
    """(N,) bool: the rows that stay. An advantage that is not a number stays, for a guard to find.

    Args:
        advantages: (N,).
        group_index: (N,) integers, rows with the same number are one group; groups may differ in size.
        rate: the share removed.
        threshold: the smallest |A| that stays; then `rate`, `scope` and `remove` are not read.
        scope: whether k rows of each group stay, or of all rows.
        remove: the rows with the smallest |A|, or, for ablations, those with the largest.
        drop_zero: afterwards take out the rows with an advantage of exactly 0.
    """
    size = advantages.abs()
    if threshold is not None:
        keep = ~(size < threshold)
    else:
        groups = group_index if scope == "group" else torch.zeros_like(group_index)
        _, group, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        limits = torch.tensor([kept_count(count, rate) for count in counts.tolist()], device=size.device, dtype=torch.int64)
        best_first = torch.argsort(size, descending=remove == "smallest", stable=True)
        order = best_first[torch.argsort(group[best_first], stable=True)]
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(size), device=size.device) - starts[group[order]]
        keep = torch.zeros_like(size, dtype=torch.bool)
        keep[order] = place < limits[group[order]]
    return keep & (advantages != 0) if drop_zero else keep
