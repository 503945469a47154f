"""Trains on some of the completions of every group, chosen by their credit."""

from __future__ import annotations

from typing import get_args

from lightning.pytorch import Callback

from ..credit.group import group_advantages
from ..data.transforms import RoundTransform
from ..selection.downsample import Rule, downsample
from ..types import ConfigError, Round


class DownSampling(Callback, RoundTransform):
    """Keeps `keep` completions of each group, before any gradient.

    Args:
        keep: completions of a group that stay.
        rule: `max_variance` keeps those whose credit differs most, `top` those with the largest.
        stream: the coefficients that are looked at.
        recentre: subtract the mean over the kept completions from every stream; else the baseline is that of the whole group.
    """

    stage = "select"
    scope = "group"

    def __init__(self, keep: int, rule: Rule = "max_variance", stream: str = "policy", recentre: bool = True) -> None:
        if keep < 1:
            raise ConfigError(f"DownSampling.keep is {keep}; expected at least 1 completion of each group")
        if rule not in get_args(Rule):
            raise ConfigError(f"DownSampling.rule is {rule!r}; expected {' or '.join(get_args(Rule))}")
        self.keep, self.rule, self.stream, self.recentre = keep, rule, stream, recentre

    def rows_left_of(self, group_size: int) -> int:
        return min(self.keep, group_size)

    def transform(self, held: Round) -> Round:
        kept = held.take(downsample(held.coefficients[self.stream], held.group_index, self.keep, self.rule))
        if not self.recentre:
            return kept
        streams = {
            name: group_advantages(stream, kept.group_index, scale="none", baseline="mean")
            for name, stream in kept.coefficients.items()
        }
        return kept.with_coefficients(**streams)
