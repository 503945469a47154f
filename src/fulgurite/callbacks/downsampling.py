"""Trains on some of the completions of every group, chosen by their credit."""

from __future__ import annotations

from typing import get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from ..credit.group import group_advantages
from ..data.transforms import RoundTransform, find_transforms
from ..selection.downsample import Rule, downsample
from ..types import ConfigError, Round


class DownSampling(Callback, RoundTransform):
    """Keeps `keep` completions of each group, before any gradient.

    Args:
        keep: completions of a group that stay.
        rule: `max_variance` keeps those whose credit differs most, `top` those with the largest.
        stream: the coefficients that are looked at.
        recentre: subtract the mean over the kept completions from every stream; else the baseline is the whole group's.

    Rows that are only counted, as `CompletionPruning` leaves them, stay so, beside the kept ones.
    """

    stage = "select"
    scope = "group"

    def __init__(self, keep: int, rule: Rule = "max_variance", stream: str = "policy", recentre: bool = True) -> None:
        if keep < 1:
            raise ConfigError(f"DownSampling.keep is {keep}; expected at least 1 completion of each group")
        if rule not in get_args(Rule):
            raise ConfigError(f"DownSampling.rule is {rule!r}; expected {' or '.join(get_args(Rule))}")
        if recentre and keep == 1:
            raise ConfigError(
                "DownSampling.keep is 1 with recentre: true, and a single completion less its own mean has no credit; expected "
                "2 or more, or recentre: false"
            )
        self.keep, self.rule, self.stream, self.recentre = keep, rule, stream, recentre
        self.reads = (stream,)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for owner in find_transforms(trainer.callbacks):
            if self.recentre and owner.streams and not owner.centred:
                raise ConfigError(
                    f"DownSampling has recentre: true, and the credit that {type(owner).__name__} sets is not centred: half of "
                    "what it wants likelier would become less likely; expected recentre: false, or no DownSampling"
                )

    def rows_left_of(self, group_size: int) -> int:
        return min(self.keep, group_size)

    def transform(self, held: Round) -> Round:
        read = held.read_rows()
        keep = ~read
        keep[read] = downsample(held.coefficients[self.stream][read], held.group_index[read], self.keep, self.rule)
        kept = held.take(keep)
        if not self.recentre:
            return kept
        read, streams = kept.read_rows(), {}
        for name, stream in kept.coefficients.items():
            centred = group_advantages(stream[read], kept.group_index[read], scale="none", baseline="mean")
            streams[name] = stream.masked_scatter(read, centred)
        return kept.with_coefficients(**streams)
