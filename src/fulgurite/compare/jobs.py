"""The runs of a comparison and their folders: warm starts, tuning, arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plan import Plan, arguments
from .runner import Job

Rates = Mapping[str, float | None]


def warm_start_jobs(plan: Plan, seeds: Sequence[int]) -> list[Job]:
    """Each warm start of each seed."""
    return [
        Job(
            f"warm start {name} seed {seed}",
            _folder(plan, "warm_starts", name, seed),
            tuple(arguments(stage.configs, stage.options, {})),
            seed,
            measure=False,
        )
        for seed in seeds
        for name, stage in plan.warm_starts.items()
    ]


def tuning_jobs(plan: Plan) -> list[Job]:
    """Each arm with rates to choose from, at each of them, on the tuning seeds."""
    return [
        job
        for seed in plan.tuning.seeds
        for arm in plan.arms
        for rate in plan.rates_of(arm)
        for job in _jobs(plan, arm, seed, rate, tuning_stages(plan, arm, rate, seed), plan.tuning.options)
    ]


def arm_jobs(plan: Plan, rates: Rates) -> list[Job]:
    """Each arm on each seed, all arms of a seed before the next seed."""
    return [
        job
        for seed in plan.seeds
        for arm in plan.arms
        for job in _jobs(plan, arm, seed, rates[arm], stages_of(plan, arm, seed), {})
    ]


def stages_of(plan: Plan, arm: str, seed: int) -> list[Path]:
    """The folders of an arm's run."""
    return _stages(plan, arm, _folder(plan, "runs", arm, seed))


def tuning_stages(plan: Plan, arm: str, rate: float, seed: int) -> list[Path]:
    """The same at a rate on a tuning seed."""
    return _stages(plan, arm, _folder(plan, "tuning", f"{arm}/{rate:g}", seed))


def _stages(plan: Plan, arm: str, first: Path) -> list[Path]:
    return [first.with_name(first.name + "-then" * i) for i in range(len(plan.arms[arm].stages))]


def _jobs(plan: Plan, arm: str, seed: int, rate: float | None, folders: list[Path], over: Mapping[str, Any]) -> Iterator[Job]:
    warm = {name: str(_folder(plan, "warm_starts", name, seed)) for name in plan.warm_starts}
    label = f"{arm} seed {seed}" + (f" rate {rate:g}" if rate is not None else "")
    for i, (stage, folder) in enumerate(zip(plan.arms[arm].stages, folders, strict=True)):
        last = folder == folders[-1]
        chosen = dict.fromkeys(plan.arms[arm].rate_options, rate) if last and rate is not None else {}
        options = {**plan.options, **stage.options, **over, **chosen}
        places = {**warm, **({"before": str(folders[i - 1])} if i else {})}
        needs = (*map(Path, warm.values()), *folders[i - 1 : i])
        words = tuple(arguments(stage.configs, options, places))
        yield Job(label + " then" * i, folder, words, seed, needs, measure=not i)


def _folder(plan: Plan, kind: str, name: str, seed: int) -> Path:
    return Path(plan.run_dir).absolute() / kind / name / f"seed-{seed}"
