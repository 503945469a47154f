"""What finished runs have written, as the curves of a comparison."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..callbacks.evaluation import read_rows
from ..types import ConfigError
from .plan import AXES
from .runner import FAILED, outcome_of
from .statistics import RunReading

COUNTERS = ("prompts", "updates", "sampled_tokens", "trained_tokens")


def read_run(stages: Sequence[Path], benchmark: str) -> RunReading | None:
    """A run of one or more stages, their costs added up; None if it was never measured.

    Raises:
        ConfigError: there is no such benchmark in it.
    """
    rows: list[dict[str, float]] = []
    outcomes: list[np.ndarray] = []
    phases: dict[str, float] = defaultdict(float)
    before = dict.fromkeys(AXES, 0.0)
    state, note = FAILED, "not run"
    for folder in stages:
        measured = read_rows(folder / "evaluation.jsonl")
        if not measured:
            break
        costs = [_costs(row) for row in measured]
        rows += [{axis: before[axis] + cost[axis] for axis in AXES} for cost in costs]
        outcomes += [_outcomes(folder, row["rounds"], benchmark) for row in measured]
        spent = (measured[-1]["seconds"] or {}).get("cpu", {})
        for phase, seconds in spent.items():
            phases[phase] += seconds
        before = rows[-1]
        state, note = (outcome_of(folder) or {"state": FAILED, "note": "not ended"}).values()
    return RunReading(state, note, rows, np.stack(outcomes), dict(phases)) if rows else None


def last_accuracy(folder: Path, benchmark: str) -> float | None:
    """Of the last evaluation of a run; None if it was never measured."""
    rows = read_rows(folder / "evaluation.jsonl")
    return rows[-1]["benchmarks"][benchmark]["accuracy"] if rows else None


def _costs(row: dict) -> dict[str, float]:
    """Of a row of evaluation.jsonl; seconds are those of training, validation is not in them."""
    seconds = row["seconds"] or {"cpu": {}, "wall": {}}
    spent = {kind: sum(s for phase, s in seconds[kind].items() if phase != "validate") for kind in seconds}
    return {**{name: float(row[name]) for name in COUNTERS}, "cpu_seconds": spent["cpu"], "gpu_seconds": spent["wall"]}


def _outcomes(folder: Path, rounds: int, benchmark: str) -> np.ndarray:
    """(Q,) share of right completions of each prompt, in the order of their ids."""
    path, correct = folder / "generations" / f"{rounds:06d}.jsonl", defaultdict(list)
    for row in map(json.loads, path.read_text().splitlines()):
        if row["benchmark"] == benchmark:
            correct[row["prompt_id"]].append(row["outcome"] == "correct")
    if not correct:
        raise ConfigError(f"{path} has no benchmark {benchmark!r}; expected the name of one of the run's benchmarks")
    return np.array([np.mean(correct[prompt]) for prompt in sorted(correct)])
