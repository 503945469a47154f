"""Weights that correct for completions drawn by an engine whose probabilities differ from the trainer's.

With d_t = old_t - engine_t over the kept tokens of a row, both log-probabilities of the same weights, and the levels of
`ratio.py` (`token` d_t, `sequence` mean_t d_t, `sequence_product` sum_t d_t):

    raw        exp(d of the level)
    truncate   min(raw, cap)                         truncated importance sampling; F. Yao and others, "On the
                                                     Rollout-Training Mismatch in Modern RL Systems", 2025
    mask       raw where low <= raw <= high, else 0  IcePop, "Small Leak Can Sink a Great Ship", Ant Group 2025

The untruncated `sequence_product` makes the mean gradient that of completions drawn from the trainer's own policy, with a
variance that grows with the length of the completion; the other levels and every bound trade bias for variance.

Differs from the sources: d of the level is limited to [-20, 20] before the exponential.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError
from .ratio import RatioLevel, log_ratio

Mode = Literal["truncate", "mask"]


@dataclass(frozen=True)
class Importance:
    """How raw weights are bounded.

    Args:
        level: one weight per `token`, or per row: `sequence` (geometric mean) or `sequence_product`.
        mode: `truncate` cuts weights at `cap`; `mask` sets those outside [low, high] to 0.
        cap: largest weight of `truncate`; infinite cuts nothing.
        low, high: window of `mask`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    level: RatioLevel = "token"
    mode: Mode = "truncate"
    cap: float = 2.0
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        for name, kind in (("level", RatioLevel), ("mode", Mode)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"importance.{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        if not self.cap > 0:
            raise ConfigError(f"importance.cap is {self.cap}; expected a positive number, for example 2")
        if not 0 <= self.low <= self.high:
            raise ConfigError(
                f"importance.low is {self.low} and importance.high {self.high}; expected 0 <= low <= high, as in 0.5 and 2"
            )

    def __call__(self, raw: Tensor) -> Tensor:
        """The weights used, from raw weights of any shape."""
        if self.mode == "truncate":
            return raw.clamp(max=self.cap)
        return torch.where((raw >= self.low) & (raw <= self.high), raw, 0)


def raw_weight(old: Tensor, engine: Tensor, keep: Tensor, level: RatioLevel) -> Tensor:
    """(N, T) detached, the sequence levels broadcast over their row; 0 where not kept.

    Args:
        old: (N, T) log-probabilities of the sampled tokens in nats, from the trainer.
        engine: (N, T) the same from the engine that sampled them.
        keep: (N, T) bool, true = kept; what masked positions hold is never read.
        level: see `ratio.py`.

    Raises:
        ConfigError: an unknown level.
    """
    return torch.where(keep, log_ratio(old.detach(), engine, keep, level).exp(), 0)


def weights_of_level(weight: Tensor, keep: Tensor, level: RatioLevel) -> Tensor:
    """(n,): the weights (N, T) of kept tokens, or at the sequence levels one for each row with a kept token."""
    return weight[keep] if level == "token" else weight.amax(1)[keep.any(1)]


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of weights (n,), a share: 1 where all are equal, 0 where all are 0. Scalar, float64.

    Source: L. Kish, "Survey Sampling", 1965, the design effect of unequal weights.
    """
    weights = weights.double()
    squares = len(weights) * weights.square().sum()
    return torch.where(squares > 0, weights.sum().square() / squares, 0)


def gap_statistics(gap: Tensor) -> dict[str, Tensor]:
    """`mean`, `p99` (linear between the two nearest) and `max` of |old - engine| (n,) in nats; 0 over nothing. Scalars,
    float64."""
    ordered = gap.double().sort().values if len(gap) else torch.zeros(1, dtype=torch.float64)
    place = 0.99 * (len(ordered) - 1)
    p99 = torch.lerp(ordered[floor(place)], ordered[ceil(place)], place - floor(place))
    return {"mean": ordered.mean(), "p99": p99, "max": ordered[-1]}
