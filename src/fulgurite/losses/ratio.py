"""Log-ratios of the trained policy to the policy that sampled, with d_t = logp_t - old_t over the kept tokens of a row:

    token              d_t                       GRPO, arXiv 2402.03300
    sequence           mean_t d_t                GSPO, arXiv 2507.18071 (the geometric mean of the token ratios)
    sequence_product   sum_t d_t                 the ratio of the whole completion's probabilities

The log-ratio of the level is limited to [-20, 20]; outside it no gradient flows.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError
from .aggregate import wide

RatioLevel = Literal["token", "sequence", "sequence_product"]
LOG_RATIO_CLAMP = 20.0


def log_ratio(logp: Tensor, old: Tensor, keep: Tensor, level: RatioLevel = "token") -> Tensor:
    """Clamped log-ratios (N, T) in nats, the sequence levels broadcast over their row; 0 where not kept.

    Args:
        logp: (N, T) log-probabilities in nats, the only input with a gradient.
        old: (N, T) log-probabilities of the policy that sampled.
        keep: (N, T) bool, true = kept; what masked positions hold is never read.
        level: see the table of this file.

    Raises:
        ConfigError: an unknown level.
    """
    if level not in get_args(RatioLevel):
        raise ConfigError(f"the ratio level is {level!r}; expected one of {', '.join(get_args(RatioLevel))}")
    difference = torch.where(keep, wide(logp) - wide(old.detach()), 0)
    if level != "token":
        difference = difference.sum(1, keepdim=True)
    if level == "sequence":
        difference = difference / keep.sum(1, keepdim=True).clamp(min=1)
    return torch.where(keep, difference.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP), 0)
