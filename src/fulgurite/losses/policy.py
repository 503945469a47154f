"""The policy term: a clipped surrogate of the expected advantage, to be minimised.

With rho the ratio of the trained to the sampling policy (`ratio.py`) and A the advantage of the row or token:

    clip     l = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)       GRPO, arXiv 2402.03300, eq. 3
             eps_high > eps_low                                            clip-higher of DAPO, arXiv 2503.14476
             rho at level `sequence`                                       GSPO, arXiv 2507.18071
             where A < 0: l <- min(l, -c A), c = dual_clip                 dual clip, arXiv 1912.09729
    cispo    l = -stop_gradient(clip(rho, 1 - eps_low, 1 + eps_high)) A logp   CISPO, arXiv 2506.13585

Differs from the papers:
- the log-ratio is limited to [-20, 20] before the exponential, with gradient 0 outside;
- the aggregation over tokens and rows is a setting of its own (`aggregate.py`), not tied to the surrogate;
- the KL term is a component of its own (`kl.py`).

CISPO runs without a lower bound; eps_low = 1 does that.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError
from .aggregate import Aggregation, per_token, weighted_sum
from .ratio import RatioLevel, log_ratio

Surrogate = Literal["clip", "cispo"]


def policy_loss(
    logp: Tensor,
    old: Tensor,
    keep: Tensor,
    advantages: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    aggregation: Aggregation,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    surrogate: Surrogate = "clip",
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The sum over kept tokens, to be divided by the update's `denominator`, and metrics as {name: (sum, kept tokens)}.

    Metrics are detached scalars that add up over splits of the rows: `ratio`, and the shares of kept tokens on which a
    bound acts, `clip_fraction_low` (A < 0, rho below the window), `clip_fraction_high` (A > 0, rho above it) and
    `clip_fraction_dual`; with `cispo` low and high count every rho outside the window, whatever the sign of A.

    Args:
        logp: (N, T) log-probabilities of the tokens in nats, the only input with a gradient.
        old: (N, T) the same of the policy that sampled.
        keep: (N, T) bool, true = kept; what masked positions of the other inputs hold is never read.
        advantages: (N,) or (N, T).
        eps_low, eps_high: half-widths of the window of rho below and above 1.
        aggregation: see `aggregate.py`.
        dual_clip: bound of rho where A < 0, above 1; None leaves it out.
        ratio_level: see `ratio.py`.
        surrogate: `clip` or `cispo`.
        weight: (N,) or (N, T), multiplies the loss of a token, not the denominator.

    Raises:
        ConfigError: a setting that cannot work.
    """
    check_settings(eps_low, eps_high, dual_clip, surrogate)
    advantage = per_token(advantages, keep)
    ratio = log_ratio(logp, old, keep, ratio_level).exp()
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    below, above = ratio < 1 - eps_low, ratio > 1 + eps_high
    bounded = torch.zeros_like(keep)
    if surrogate == "cispo":
        gain = clipped.detach() * advantage * logp
    else:
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        below, above = below & (advantage < 0), above & (advantage > 0)
    if dual_clip is not None:
        bounded = (advantage < 0) & (gain < dual_clip * advantage)
        gain = torch.where(bounded, dual_clip * advantage, gain)

    kept = keep.sum()
    metrics = {
        "ratio": (torch.where(keep, ratio.detach(), 0).sum(), kept),
        "clip_fraction_low": (below.sum(), kept),
        "clip_fraction_high": (above.sum(), kept),
        "clip_fraction_dual": (bounded.sum(), kept),
    }
    return weighted_sum(-gain, keep, aggregation, weight), metrics


def check_settings(eps_low: float, eps_high: float, dual_clip: float | None, surrogate: str) -> None:
    """Refuses settings of `policy_loss` that cannot work.

    Raises:
        ConfigError: with what was given and what is expected.
    """
    if surrogate not in get_args(Surrogate):
        raise ConfigError(f"the surrogate is {surrogate!r}; expected one of {', '.join(get_args(Surrogate))}")
    if not (eps_low >= 0 and eps_high >= 0):
        raise ConfigError(f"eps_low is {eps_low} and eps_high {eps_high}; expected 0 or more for both")
    if dual_clip is not None and surrogate == "cispo":
        raise ConfigError(f"dual_clip is {dual_clip} with the surrogate cispo, which has no such bound; leave it out")
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip is {dual_clip}; expected a number above 1, or none to leave it out")
