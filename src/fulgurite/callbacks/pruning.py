"""CPPO (arXiv 2503.22342): completions with a small advantage are dropped before any policy, old or reference forward pass."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..data.transforms import RoundTransform
from ..parallel import gather_over_ranks
from ..selection.prune import Removed, Scope, kept_count, prune
from ..types import ConfigError, Round


class CompletionPruning(Callback, RoundTransform):
    """Keeps the completions with the largest |advantage|; exactly one of `rate` and `threshold` is given.

    Args:
        rate: the share of completions dropped, of each group or of each update.
        threshold: the smallest |advantage| that stays.
        scope: `group` keeps the same number of each group, `global` the largest of an update, over all ranks.
        divisor: what the loss divides by: the rows `retained`, or all of the `group`, dropped ones included.
        remove: `smallest`, or, for ablations, `largest`.
        drop_zero: also drop rows with an advantage of exactly 0, such as all of a group without spread.
        stream: the coefficients that are looked at.
    """

    stage = "select"

    def __init__(
        self,
        rate: float | None = None,
        threshold: float | None = None,
        scope: Scope = "group",
        divisor: str = "retained",
        remove: Removed = "smallest",
        drop_zero: bool = False,
        stream: str = "policy",
    ) -> None:
        if (rate is None) == (threshold is None):
            raise ConfigError(
                f"CompletionPruning has rate {rate} and threshold {threshold}; expected one of them, for example rate: 0.875"
            )
        if rate is not None and not 0 <= rate < 1:
            raise ConfigError(f"CompletionPruning.rate is {rate}; expected a share from 0 (drops nothing) to below 1")
        if threshold is not None and not threshold >= 0:
            raise ConfigError(f"CompletionPruning.threshold is {threshold}; expected 0 (drops nothing) or more")
        for name, given, known in (
            ("scope", scope, ("group", "global")),
            ("divisor", divisor, ("retained", "group")),
            ("remove", remove, ("smallest", "largest")),
        ):
            if given not in known:
                raise ConfigError(f"CompletionPruning.{name} is {given!r}; expected {' or '.join(known)}")
        self.rate, self.threshold, self.divisor, self.stream = rate or 0.0, threshold, divisor, stream
        self.reads = (stream,)
        self.settings = {"scope": scope, "remove": remove, "drop_zero": drop_zero}
        self.scope = "group" if threshold is not None or scope == "group" else "batch"
        self.trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer

    def rows_left_of(self, group_size: int) -> int | None:
        known = self.scope == "group" and self.threshold is None and not self.settings["drop_zero"]
        return kept_count(group_size, self.rate) if known else None

    def transform(self, held: Round) -> Round:
        keep = self._keep(held)
        return held.take(keep) if self.divisor == "retained" else held.with_counted_only(~keep)

    def _keep(self, held: Round) -> torch.Tensor:
        coefficients, groups = held.coefficients[self.stream], held.group_index
        settings = {**self.settings, "rate": self.rate, "threshold": self.threshold}
        if self.scope == "group":
            return prune(coefficients, groups, **settings)
        keep = torch.zeros(len(held), dtype=torch.bool)
        for step in range(self.trainer.datamodule.steps_per_round):
            mine = (held.step == step).nonzero().flatten()
            ranks = gather_over_ranks(self.trainer, (coefficients[mine], groups[mine]))
            values = torch.cat([values for values, _ in ranks])
            place = torch.cat([of_rank * len(ranks) + rank for rank, (_, of_rank) in enumerate(ranks)])
            order = torch.argsort(place, stable=True)  # prompt by prompt, as in one process: it decides ties
            kept = torch.zeros(len(values), dtype=torch.bool)
            kept[order] = prune(values[order], place[order], **settings)
            keep[mine] = kept.split([len(values) for values, _ in ranks])[self.trainer.global_rank]
        return keep
