"""Guard: the rewards within every group are all equal and its credit is 0: nothing is learned."""

from __future__ import annotations

import torch

from ..types import Round
from . import warn_then_stop


def equal_groups(sampled: Round) -> tuple[int, int]:
    """(groups whose rewards are all equal, groups); only groups of two rows or more."""
    equal, several = _equal(sampled)
    return int(equal.sum()), int(several.sum())


def equal_groups_without_credit(sampled: Round) -> tuple[int, int]:
    """As `equal_groups`, without the equal groups with a coefficient other than 0: credit need not come from rewards."""
    equal, several = _equal(sampled)
    for coefficients in sampled.coefficients.values():
        equal[sampled.group_index[coefficients != 0]] = False
    return int(equal.sum()), int(several.sum())


def _equal(sampled: Round) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each prompt: its group has two rows or more and all rewards equal; it has two rows or more."""
    groups, rewards = sampled.group_index, sampled.rewards
    sizes = torch.bincount(groups, minlength=len(sampled.prompts))
    lowest = rewards.new_zeros(len(sizes)).scatter_reduce(0, groups, rewards, "amin", include_self=False)
    highest = rewards.new_zeros(len(sizes)).scatter_reduce(0, groups, rewards, "amax", include_self=False)
    return (lowest == highest) & (sizes > 1), sizes > 1


def check_all_equal_groups(equal: int, groups: int, max_all_equal: float, streak: int, patience: int) -> int:
    """The new number of rounds in a row with at least the share `max_all_equal` of groups all equal; a round without
    groups says nothing.

    Raises:
        GuardError: that number has reached `patience`.
    """
    if not groups:
        return streak
    if equal / groups < max_all_equal:
        return 0
    return warn_then_stop(
        f"in {equal} of {groups} groups of this round all completions have the same reward (round {streak + 1} in a "
        f"row); expected a share below {max_all_equal}. Take prompts that the model solves sometimes, raise the "
        "sampling temperature or completions_per_prompt, check that the reward finds the answers, or set "
        "guards.max_all_equal above 1 to allow it",
        streak + 1,
        patience,
    )
