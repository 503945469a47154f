"""The hierarchical bootstrap against enumeration and its closed-form standard error, and verdicts at their edges."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import sqrt

import numpy as np
import pytest

from fulgurite.compare.bootstrap import estimate, resample_counts, verdict


def test_a_draw_is_seeds_then_prompts_anew_for_each():
    values = np.array([[0.0, 1.0], [2.0, 5.0]])
    exact = Counter()
    for seeds in product((0, 1), repeat=2):
        for prompts in product((0, 1), repeat=4):
            exact[sum(values[seed, prompt] for seed, prompt in zip((seeds[0], *seeds, seeds[1]), prompts, strict=True))] += (
                1 / 64
            )
    counts = resample_counts(2, 2, 40_000, 0)
    drawn = Counter((counts @ values.ravel()).tolist())
    assert set(drawn) == set(exact)
    for total, chance in exact.items():
        assert drawn[total] / 40_000 == pytest.approx(chance, abs=4.5 * sqrt(chance * (1 - chance) / 40_000))


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (3, 0.0), (20, 0.0), (20, 0.05), (20, 0.4)])
def test_the_interval_has_the_width_of_the_standard_error(seeds, seed_spread):
    generator = np.random.default_rng(1)
    values = generator.random((seeds, 60)) + seed_spread * generator.standard_normal((seeds, 1))
    error = sqrt(values.mean(1).var() / seeds + values.var(1).mean() / values.size)
    mean, low, high = estimate(values[..., None], resample_counts(seeds, 60, 4000, 2))[:, 0]
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert high - mean == pytest.approx(1.96 * error, rel=0.08)
    assert mean - low == pytest.approx(1.96 * error, rel=0.08)


def test_the_interval_is_from_the_2_5_to_the_97_5_percentile():
    assert estimate(np.ones((1, 1, 1)), np.arange(41.0)[:, None]).ravel().tolist() == [1, 1, 39]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.05, "on par"),
        (0.01, 0.05, "on par"),
        (-0.05, -0.01, "on par"),
        (0.01, 0.051, "better"),
        (0.0, 0.051, "undecided"),
        (-0.051, -0.01, "worse"),
        (-0.051, 0.0, "undecided"),
        (-0.051, 0.05, "undecided"),
        (-0.05, 0.051, "undecided"),
    ],
)
def test_a_verdict_at_its_edges(low, high, expected):
    assert verdict(low, high, 0.05, 2) == expected
    assert verdict(low, high, 0.05, 1) == "undecided (one seed)"
