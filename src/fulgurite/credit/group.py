"""Advantages of completions among the completions of the same prompt.

With r_1..r_G the rewards of one group, and std over the same group (ddof 0 for `pop_std`, 1 for `sample_std`):

    scale none                       A_i = r_i - mean(r)                       Dr. GRPO, arXiv 2503.20783
    scale pop_std | sample_std       A_i = (r_i - mean(r)) / (std(r) + eps)    GRPO, arXiv 2402.03300
    baseline leave_one_out           A_i = r_i - mean(r without r_i)           RLOO, arXiv 2402.14740

Binary rewards with success probability p turn the expected gradient of these into a factor times the gradient of p:
(G-1)/G without scaling, 1 for leave-one-out, E[sqrt(K(G-K))]/(G p(1-p)) for pop_std, K ~ Binomial(G, p); the latter is
exactly 1 for pairs, and sample_std multiplies it by sqrt((G-1)/G).

Differs from the papers:
- a group whose rewards spread no wider than `tie_margin`, and a group of one, gets exactly 0;
- eps is added to the standard deviation, not inside the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError

Scale = Literal["none", "pop_std", "sample_std"]
Baseline = Literal["mean", "leave_one_out"]


def group_advantages(
    rewards: Tensor,
    group_index: Tensor,
    scale: Scale,
    baseline: Baseline,
    adv_eps: float = 1e-6,
    tie_margin: float = 0.0,
) -> Tensor:
    """Advantages (N,), detached, in the dtype of the rewards.

    A reward that is not finite leaves the advantages of its own group, and of no other, not finite.

    Args:
        rewards: (N,) floating point.
        group_index: (N,) integers in any order; rows with the same number are one group, groups may differ in size.
        scale: what the centred reward is divided by.
        baseline: what is subtracted; `leave_one_out` goes with scale `none` only.
        adv_eps: added to the standard deviation, in reward units.
        tie_margin: largest difference of rewards within a group, in reward units, that counts as a tie.

    Raises:
        ConfigError: a setting that cannot work.
        ValueError: the shapes differ.
    """
    _check(scale, baseline, adv_eps, tie_margin)
    if rewards.shape != group_index.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} and group_index {tuple(group_index.shape)}; "
            "expected one reward and one group number per row"
        )
    groups, index = torch.unique(group_index, return_inverse=True)
    reward = rewards.detach().double()
    empty = reward.new_zeros(len(groups))
    highest = empty.scatter_reduce(0, index, reward, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, index, reward, "amin", include_self=False)
    size = empty.scatter_add(0, index, torch.ones_like(reward))
    centred = reward - (empty.scatter_add(0, index, reward) / size)[index]
    if baseline == "leave_one_out":
        advantages = centred * (size / (size - 1))[index]
    elif scale == "none":
        advantages = centred
    else:
        ddof = int(scale == "sample_std")
        std = (empty.scatter_add(0, index, centred.square()) / (size - ddof)).sqrt()
        advantages = centred / (std + adv_eps)[index]
    rounding = 2 * torch.finfo(rewards.dtype).eps * torch.maximum(highest.abs(), lowest.abs()) if tie_margin else 0.0
    tied = highest - lowest <= tie_margin + rounding  # so that a margin of 0.1 ties 0.2 and 0.3 in float32 too
    return torch.where(tied[index], 0.0, advantages).to(rewards.dtype)


@dataclass(frozen=True)
class Advantage:
    """How rewards become advantages; the arguments are those of `group_advantages`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    scale: Scale = "pop_std"
    baseline: Baseline = "mean"
    adv_eps: float = 1e-6
    tie_margin: float = 0.0

    def __post_init__(self) -> None:
        _check(self.scale, self.baseline, self.adv_eps, self.tie_margin)

    def __call__(self, rewards: Tensor, group_index: Tensor) -> Tensor:
        """Advantages (N,) of rewards (N,) in the groups named by group_index (N,)."""
        return group_advantages(rewards, group_index, self.scale, self.baseline, self.adv_eps, self.tie_margin)


def _check(scale: str, baseline: str, adv_eps: float, tie_margin: float) -> None:
    if scale not in get_args(Scale):
        raise ConfigError(f"advantage.scale is {scale!r}; expected one of {', '.join(get_args(Scale))}")
    if baseline not in get_args(Baseline):
        raise ConfigError(f"advantage.baseline is {baseline!r}; expected one of {', '.join(get_args(Baseline))}")
    if baseline == "leave_one_out" and scale != "none":
        raise ConfigError(
            f"advantage.baseline is leave_one_out with advantage.scale {scale}; leave-one-out is unbiased only "
            "unscaled: set advantage.scale to none, or advantage.baseline to mean"
        )
    if not adv_eps >= 0:
        raise ConfigError(f"advantage.adv_eps is {adv_eps}; expected 0 or more")
    if not tie_margin >= 0:
        raise ConfigError(f"advantage.tie_margin is {tie_margin}; expected 0 (only equal rewards tie) or more")
