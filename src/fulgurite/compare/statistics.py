"""Accuracy at the same budget, from evaluations of several runs: curves, areas, costs to a target and paired differences.

Between two evaluations each prompt's outcome is interpolated linearly along an axis (prompts, seconds, ...); after the last
one it stays, so a run that a guard stopped is never left out. Where an axis stands still between two evaluations, the later
one holds.

Intervals are those of `bootstrap.py`. Curves and pairs with the same number of seeds share its draws; a paired difference is
taken seed by seed and prompt by prompt before it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .bootstrap import estimate, resample_counts, verdict

STATES = ("finished", "stopped by a guard", "failed")
GRID = 41


@dataclass(frozen=True)
class RunReading:
    """One run, read under one benchmark.

    Args:
        state: one of `STATES`.
        note: the last line of its error, empty where it finished.
        rows: E evaluations in order, each the counter of every axis; counters start at 0 and never fall.
        outcomes: (E, Q) float64, the share of right completions of each prompt; the same prompts in every run.
        phases: seconds by phase.
    """

    state: str
    note: str
    rows: list[dict[str, float]]
    outcomes: np.ndarray
    phases: dict[str, float]

    def counter(self, axis: str) -> np.ndarray:
        """(E,) float64: where on the axis the evaluations are."""
        return np.array([row[axis] for row in self.rows], dtype=float)


@dataclass(frozen=True)
class Curve:
    """The runs of one method under one benchmark, by seed; `settings` are shown."""

    name: str
    benchmark: str
    settings: dict[str, str]
    runs: dict[int, RunReading]


def common_budget(curves: Sequence[Curve], axis: str) -> float:
    """The smallest last x of a finished run that moves along the axis; where none finished, the largest last x of all runs."""
    ends = [(run.state, float(run.counter(axis)[-1])) for curve in curves for run in curve.runs.values()]
    return min((x for state, x in ends if state == "finished" and x > 0), default=max(x for _, x in ends))


def grid_weights(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(G, E): times outcomes (E, Q) they are the outcomes interpolated at each of G points.

    Args:
        x: (E,) non-decreasing.
        grid: (G,).
    """
    return np.stack([np.interp(grid, x, unit) for unit in np.eye(len(x))], axis=1)


def area_weights(x: np.ndarray, budget: float) -> np.ndarray:
    """(E,): times outcomes (E, Q) they are the exact area under the interpolated outcomes from 0 to the budget, per budget.

    Args:
        x: (E,) non-decreasing from 0.
        budget: above 0.
    """
    inside = x <= budget
    heights = np.vstack([np.eye(len(x))[inside], grid_weights(x, np.array([budget]))])
    return np.trapezoid(heights, np.append(x[inside], budget), axis=0) / budget


def cost_to_target(x: np.ndarray, accuracy: np.ndarray, target: float) -> float | None:
    """The first x where the interpolated accuracy reaches the target, None if it never does.

    An accuracy short of the target by rounding alone reaches it.

    Args:
        x: (E,) non-decreasing.
        accuracy: (E,).
    """
    reached = np.flatnonzero(accuracy >= target - 1e-9)
    if not len(reached):
        return None
    around = slice(max(reached[0] - 1, 0), reached[0] + 1)
    return float(np.interp(target, accuracy[around], x[around]))


def summarise(
    curves: Sequence[Curve],
    axes: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    target: float,
    margin: float,
    seed: int = 0,
    resamples: int = 2000,
) -> dict:
    """The numbers of a report, plain JSON types without NaN: the seeds, the target, the margin, the curves and the axes.

    A curve is left out of an axis along which none of its runs moves, and so is an axis along which no curve moves.
    Holds R * S * Q float64 for each number of seeds.

    Args:
        axes: counters that every row has.
        pairs: names of two curves each; the first is compared with the second over the seeds that both have.
        target: the accuracy whose cost is looked for.
        margin: differences of accuracy up to it count as on par.
        seed: of the bootstrap; the same seed gives the same intervals.
        resamples: R, draws of the bootstrap.

    Raises:
        ValueError: readings that do not fit together, or pairs of curves that are not there or share no seed.
    """
    prompts = _check(curves, axes, pairs)

    @cache
    def draw(seeds: int) -> np.ndarray:
        return resample_counts(seeds, prompts, resamples, seed)

    moving = {axis: [c for c in curves if any(run.counter(axis)[-1] > 0 for run in c.runs.values())] for axis in axes}
    return {
        "seeds": sorted({number for curve in curves for number in curve.runs}),
        "target": target,
        "margin": margin,
        "curves": [_whole_curve(curve, axes) for curve in curves],
        "axes": [_along(axis, movers, pairs, target, margin, draw) for axis, movers in moving.items() if movers],
    }


def _whole_curve(curve: Curve, axes: Sequence[str]) -> dict:
    runs = dict(sorted(curve.runs.items()))
    phases = dict.fromkeys(phase for run in runs.values() for phase in run.phases)
    return {
        "name": curve.name,
        "benchmark": curve.benchmark,
        "settings": curve.settings,
        "phases": {phase: sum(float(run.phases.get(phase, 0)) for run in runs.values()) / len(runs) for phase in phases},
        "runs": [
            {"seed": seed, "state": run.state, "note": run.note, "points": _points(run, axes)} for seed, run in runs.items()
        ],
    }


def _points(run: RunReading, axes: Sequence[str]) -> list[dict[str, float]]:
    accuracies = run.outcomes.mean(1).tolist()
    return [
        {axis: float(row[axis]) for axis in axes} | {"accuracy": accuracy}
        for row, accuracy in zip(run.rows, accuracies, strict=True)
    ]


def _along(
    axis: str,
    curves: Sequence[Curve],
    pairs: Sequence[tuple[str, str]],
    target: float,
    margin: float,
    draw: Callable[[int], np.ndarray],
) -> dict:
    budget = common_budget(curves, axis)
    grid = np.linspace(0, budget, GRID)
    rows = []
    for curve in curves:
        values = np.stack([_values(run, axis, grid) for _, run in sorted(curve.runs.items())])
        estimates = estimate(values, draw(len(curve.runs)))
        mean, low, high = estimates[:, :GRID].tolist()
        row = {"name": curve.name, "mean": mean, "low": low, "high": high, **_end_and_area(estimates)}
        rows.append(row | {"cost_to_target": _costs(curve, axis, target)})
    on_axis = {curve.name: curve for curve in curves}
    compared = [
        _pair(axis, on_axis[first], on_axis[second], margin, draw)
        for first, second in pairs
        if first in on_axis and second in on_axis
    ]
    return {"axis": axis, "budget": budget, "grid": grid.tolist(), "curves": rows, "pairs": compared}


def _pair(axis: str, first: Curve, second: Curve, margin: float, draw: Callable[[int], np.ndarray]) -> dict:
    """The first against the second, up to the budget of these two."""
    budget = common_budget((first, second), axis)
    end = np.array([budget])
    shared = sorted(first.runs.keys() & second.runs.keys())
    differences = np.stack([_values(first.runs[seed], axis, end) - _values(second.runs[seed], axis, end) for seed in shared])
    measured = _end_and_area(estimate(differences, draw(len(shared))))
    for number in measured.values():
        number["verdict"] = verdict(number["low"], number["high"], margin, len(shared))
    return {"first": first.name, "second": second.name, "budget": budget, **measured}


def _values(run: RunReading, axis: str, grid: np.ndarray) -> np.ndarray:
    """(Q, G + 1): each prompt's outcome at the G points of the grid, whose last is the budget, then its area."""
    x = run.counter(axis)
    return (np.vstack([grid_weights(x, grid), area_weights(x, grid[-1])]) @ run.outcomes).T


def _end_and_area(estimates: np.ndarray) -> dict[str, dict]:
    end, area = (dict(zip(("value", "low", "high"), column, strict=True)) for column in estimates[:, -2:].T.tolist())
    return {"end": end, "area": area}


def _costs(curve: Curve, axis: str, target: float) -> dict:
    costs = {s: cost_to_target(run.counter(axis), run.outcomes.mean(1), target) for s, run in sorted(curve.runs.items())}
    median = float(np.median([np.inf if cost is None else cost for cost in costs.values()]))
    return {
        "median": median if np.isfinite(median) else None,
        "reached": sum(cost is not None for cost in costs.values()),
        "of": len(costs),
        "by_seed": [{"seed": seed, "value": cost} for seed, cost in costs.items()],
    }


def _check(curves: Sequence[Curve], axes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> int:
    """The number of prompts, the same in all runs."""
    seeds = {curve.name: set(curve.runs) for curve in curves}
    if not seeds or len(seeds) < len(curves) or not all(seeds.values()):
        seen = [(curve.name, sorted(curve.runs)) for curve in curves]
        raise ValueError(f"curves and their seeds are {seen}, expected at least one curve, each name once, each with a run")
    for first, second in pairs:
        if not {first, second} <= set(seeds):
            raise ValueError(f"a pair is {first!r} and {second!r}, expected two of the curves {list(seeds)}")
        if not seeds[first] & seeds[second]:
            seen = f"seeds {sorted(seeds[first])} and {sorted(seeds[second])}"
            raise ValueError(f"{first!r} and {second!r} have {seen}, expected a pair to share at least one")
    prompts = set()
    for curve in curves:
        for seed, run in curve.runs.items():
            _check_run(run, axes, f"{curve.name!r} with seed {seed}")
            prompts.add(run.outcomes.shape[1])
    if len(prompts) > 1:
        raise ValueError(f"runs have {sorted(prompts)} prompts, expected the same prompts in every run")
    return prompts.pop()


def _check_run(run: RunReading, axes: Sequence[str], name: str) -> None:
    if run.state not in STATES:
        raise ValueError(f"{name} is {run.state!r}, expected one of {STATES}")
    shape = run.outcomes.shape
    if len(shape) != 2 or 0 in shape or shape[0] != len(run.rows):
        raise ValueError(f"{name} has {len(run.rows)} rows and outcomes {shape}, expected (rows, prompts), at least 1 each")
    if not ((run.outcomes >= 0) & (run.outcomes <= 1)).all():
        raise ValueError(f"{name} has outcomes {run.outcomes.min()} to {run.outcomes.max()}, expected shares from 0 to 1")
    for axis in axes:
        x = [row.get(axis, np.nan) for row in run.rows]
        if x[0] != 0 or not (np.diff(x) >= 0).all() or np.isinf(x[-1]):
            raise ValueError(f"{name} has {axis} {x}, expected a counter from 0 that never falls")
