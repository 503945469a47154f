"""CoDistill-GRPO (arXiv 2605.08873): the credit of the two models."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..credit.group import group_advantages
from ..credit.kd_reward import kd_reward
from ..data.transforms import RoundTransform
from ..types import ConfigError, Round, Segment
from . import log_numbers, over_ranks


class CoDistillation(Callback, RoundTransform):
    """Credits the small model with the task's reward and `alpha` times what the large one finds likely, the large model with
    the task's reward alone; both less their mean over the group.

    Logs once a round, over the sampled rows of all ranks, at the x of the round's first update: `codistill/kd_reward` (without
    `alpha`), `codistill/effective_reward` and `codistill/kl_small_large_nats` (per token of the completions).

    Args:
        alpha: weight of the reward for what the large model finds likely.
        const_len: tokens that this reward is divided by; by default each completion's own.
    """

    stage = "advantage"
    streams = ("small", "large")
    centred = True
    columns = ("small", "large")

    def __init__(self, alpha: float = 1.0, const_len: int | None = None) -> None:
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"CoDistillation.alpha is {alpha}; expected 0 (no reward of the large model) or a number above")
        if const_len is not None and const_len < 1:
            raise ConfigError(f"CoDistillation.const_len is {const_len}; expected at least 1, or null for the own length")
        self.alpha, self.const_len = alpha, const_len

    def transform(self, held: Round) -> Round:
        effective = held.rewards.double() + self.alpha * self._kd_reward(held)
        centred = (
            group_advantages(rewards, held.group_index, scale="none", baseline="mean") for rewards in (effective, held.rewards)
        )
        return held.with_coefficients(**dict(zip(self.streams, centred, strict=True)))

    def _kd_reward(self, held: Round) -> Tensor:
        return kd_reward(held.columns["small"], held.columns["large"], _completion(held), self.const_len)

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        kd, keep = self._kd_reward(sampled), _completion(sampled)
        gap = torch.where(keep, sampled.columns["small"] - sampled.columns["large"], 0.0)
        sums = over_ranks(
            trainer,
            {
                "rows": len(sampled),
                "tokens": int(keep.sum()),
                "kd": float(kd.sum()),
                "effective": float((sampled.rewards.double() + self.alpha * kd).sum()),
                "gap": float(gap.double().sum()),
            },
            sum,
        )
        if sums["tokens"]:
            numbers = {
                "codistill/kd_reward": sums["kd"] / sums["rows"],
                "codistill/effective_reward": sums["effective"] / sums["rows"],
                "codistill/kl_small_large_nats": sums["gap"] / sums["tokens"],
            }
            log_numbers(trainer, numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _completion(held: Round) -> Tensor:
    return held.all_rows().keep(Segment.HINT, Segment.SAMPLED)
