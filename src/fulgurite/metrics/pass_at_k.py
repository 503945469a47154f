"""pass@k and pass^k of n completions of a prompt, without bias (Chen et al. 2021, arXiv 2107.03374, equation 1).

    pass@k = 1 - C(n - c, k) / C(n, k)        one of k is right
    pass^k =     C(c, k)     / C(n, k)        all k are right

c of the n completions are right; k of them are drawn without replacement.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pass_at_k(right: Tensor, n: int, k: int) -> Tensor:
    """(Q,) float64: the chance that one of k completions is right.

    Args:
        right: (Q,) int64, the right ones among the n completions of each prompt.

    Raises:
        ValueError: k is below 1 or above n.
    """
    return 1 - pass_hat_k(n - right, n, k)


def pass_hat_k(right: Tensor, n: int, k: int) -> Tensor:
    """(Q,) float64: the chance that all k completions are right, as a product of k shares: nothing overflows, and one of them
    is 0 where too few are right.

    Raises:
        ValueError: k is below 1 or above n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k} with {n} completions of a prompt; expected 1 to {n}")
    drawn = torch.arange(k, dtype=torch.float64, device=right.device)
    return ((right.double()[:, None] - drawn) / (n - drawn)).prod(1)
