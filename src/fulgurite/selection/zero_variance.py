"""Which groups carry a gradient at all.

A group whose rewards are all equal has coefficients of exactly 0: its rows cost a forward and a backward pass and
change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def live_rows(coefficients: Mapping[str, Tensor], group_index: Tensor) -> Tensor:
    """(N,) bool: rows of groups in which any row has a non-zero coefficient in any stream.

    A group is kept or dropped whole: a row with coefficient 0 stays beside one with another. A coefficient that is not
    a number counts as non-zero: it is for a guard to find, not to be dropped unseen.

    Args:
        coefficients: {stream: (N,)}; without streams no row is live.
        group_index: (N,) integers, rows with the same number are one group.
    """
    nonzero = torch.zeros_like(group_index, dtype=torch.bool)
    for stream in coefficients.values():
        nonzero |= stream != 0
    return torch.isin(group_index, group_index[nonzero])
