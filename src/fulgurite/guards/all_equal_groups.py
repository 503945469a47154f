"""Guard: the rewards within every group are all equal and its credit is 0: nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from ..types import Round
from . import warn_then_stop


def equal_groups(sampled: Round) -> tuple[int, int]:
    """(groups whose rewards are all equal, groups); only groups of two rows or more."""
    equal, several = _equal(sampled)
    return int(equal.sum()), int(several.sum())


def equal_groups_without_credit(sampled: Round, streams: Mapping[str, Set[str]]) -> dict[str, int]:
    """Of each trained model, the groups whose rewards are all equal and whose coefficients for it are all 0: credit need not
    come from rewards.

    Args:
        streams: {model: the streams that it is trained on}.
    """
    equal = dict.fromkeys(streams, _equal(sampled)[0])
    for model, names in streams.items():
        for name in names:
            credited = torch.zeros_like(equal[model])
            credited[sampled.group_index[sampled.coefficients[name] != 0]] = True
            equal[model] = equal[model] & ~credited
    return {model: int(groups.sum()) for model, groups in equal.items()}


def _equal(sampled: Round) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each prompt: its group has two rows or more and all rewards equal; it has two rows or more."""
    groups, rewards = sampled.group_index, sampled.rewards
    sizes = torch.bincount(groups, minlength=len(sampled.prompts))
    lowest = rewards.new_zeros(len(sizes)).scatter_reduce(0, groups, rewards, "amin", include_self=False)
    highest = rewards.new_zeros(len(sizes)).scatter_reduce(0, groups, rewards, "amax", include_self=False)
    return (lowest == highest) & (sizes > 1), sizes > 1


def check_all_equal_groups(equal: Mapping[str, int], groups: int, max_all_equal: float, streak: int, patience: int) -> int:
    """The new number of rounds in a row with at least the share `max_all_equal` of groups all equal and without credit for some
    model; a round without groups says nothing.

    Args:
        equal: {model: groups}, see `equal_groups_without_credit`.
        groups: of two rows or more.

    Raises:
        GuardError: that number has reached `patience`.
    """
    if not groups:
        return streak
    model = max(equal, key=equal.__getitem__)
    if equal[model] / groups < max_all_equal:
        return 0
    return warn_then_stop(
        f"in {equal[model]} of {groups} groups of this round all completions have the same reward, and none has credit for "
        f"{model!r} (round {streak + 1} in a row); expected a share below {max_all_equal}. Take prompts that the model solves "
        "sometimes, raise the sampling temperature or completions_per_prompt, check that the reward finds the answers, or set "
        "guards.max_all_equal above 1 to allow it",
        streak + 1,
        patience,
    )
