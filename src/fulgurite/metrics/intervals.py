"""95% intervals for means over prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wilson_interval(share: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share among `count` independent prompts.

    For the mean of scores between 0 and 1 that are no plain 0 and 1 it is too wide, never too narrow.
    """
    if not count:
        return 0.0, 1.0
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_interval(scores: Tensor, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the mean over prompts drawn again with replacement (percentile bootstrap).

    Prompts are drawn whole, with all their completions: completions of one prompt are no independent evidence. The order of
    the scores does not matter.

    Args:
        scores: (Q,), one score per prompt.
    """
    ordered = scores.double().sort().values
    draws = torch.randint(len(ordered), (resamples, len(ordered)), generator=torch.Generator().manual_seed(seed))
    low, high = ordered[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def accuracy_interval(scores: Tensor, n: int) -> tuple[float, float]:
    """The interval of an accuracy from each prompt's share of right ones among n completions, (Q,) float64.

    By bootstrap. By Wilson where each prompt has one completion, and where all prompts score the same: drawing them again
    would then give an interval without width, as if nothing were left to chance.
    """
    if n == 1 or bool((scores == scores[0]).all()):
        return wilson_interval(float(scores.mean()), len(scores))
    return bootstrap_interval(scores)
