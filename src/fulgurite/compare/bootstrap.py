"""95% intervals for means over seeds and prompts, and what an interval of a difference says.

The bootstrap is hierarchical: seeds are drawn with replacement, then, each time a seed was drawn, prompts with replacement
within it (Davison and Hinkley, Bootstrap Methods and their Application, section 3.8, strategy 1). An interval is the 2.5% and
97.5% quantiles of the means of the draws (percentile method). With one seed it is one over prompts alone.

What makes a prompt hard under every seed counts as independent evidence in each, so where that is most of the spread the
interval is too narrow for prompts that were not asked. A paired difference takes most of it out.
"""

from __future__ import annotations

import numpy as np


def resample_counts(seeds: int, prompts: int, resamples: int, seed: int) -> np.ndarray:
    """(R, S * Q) float64: how often each draw of the hierarchical bootstrap holds each prompt of each seed, in all S * Q times.

    A draw is S seeds with replacement, then Q prompts for each of these S, anew for a seed that was drawn twice: n_s times of
    seed s make a multinomial count vector of n_s * Q prompts.
    """
    generator = np.random.default_rng(seed)
    times = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    counts = generator.multinomial(times * prompts, np.full(prompts, 1 / prompts))
    return counts.reshape(resamples, seeds * prompts).astype(float)


def estimate(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(3, C): the mean over seeds and prompts, the lower and the upper end of its 95% interval.

    Args:
        values: (S, Q, C), C numbers of each prompt under each seed.
        counts: (R, S * Q) of `resample_counts`.
    """
    flat = values.reshape(-1, values.shape[-1])
    return np.vstack([flat.mean(0), np.quantile(counts @ flat / len(flat), (0.025, 0.975), axis=0)])


def verdict(low: float, high: float, margin: float, seeds: int) -> str:
    """What the 95% interval of a difference says of the first against the second; one seed alone decides nothing."""
    if seeds == 1:
        return "undecided (one seed)"
    if -margin <= low and high <= margin:
        return "on par"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
