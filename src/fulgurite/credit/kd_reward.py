"""A reward for what the large model finds likely: on-policy knowledge distillation (CoDistill-GRPO, arXiv 2605.08873).

    kd_i = 1/L_i sum_t [ log p_large(o_it) - log p_small(o_it) ]

over the completion that the small model sampled. Its mean is -KL(small || large) / L for a constant L; as a reward it pulls the
small model to the large one without a loss term of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kd_reward(small: Tensor, large: Tensor, keep: Tensor, const_len: int | None = None) -> Tensor:
    """(N,) float64, detached, in nats.

    Args:
        small, large: (N, T) log-probabilities of the tokens under the two models.
        keep: (N, T) bool, true = kept; what masked positions of the others hold is never read.
        const_len: L; None divides by the row's own kept tokens, a row without any has 0.
    """
    ratio = torch.where(keep, large.detach().double() - small.detach().double(), 0.0).sum(1)
    return ratio / (keep.sum(1).clamp(min=1) if const_len is None else const_len)
