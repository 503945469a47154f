"""What is compared: arms, seeds, what they start from and where their curves are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..types import ConfigError

AXES = ("prompts", "updates", "sampled_tokens", "trained_tokens", "cpu_seconds", "gpu_seconds")
RATE = "model.init_args.optimizer.learning_rate"
SAFE = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Stage:
    """One run of `fit`.

    Args:
        configs: config files, as `--config` takes them, a later one wins.
        options: {option: value} over them, for example `trainer.max_epochs: 100`. `{name}` in a text is the run folder of the
            warm start of that name and of the same seed, `{before}` that of the arm's stage before.
    """

    configs: list[str]
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A method with its settings.

    Args:
        configs, options: of its run, see `Stage`.
        then: a further run that starts from the first one's model; its cost is added to the first one's.
        rates: learning rates to choose from on the tuning seeds; by default those of `tuning`; empty: the config's holds.
        rate_options: the options that the chosen rate sets, in the last stage.
        curves: {shown name: benchmark}; by default the arm's name and the comparison's benchmark. Of a pair of models,
            `<benchmark>_large` is the large one's.
    """

    configs: list[str]
    options: dict = field(default_factory=dict)
    then: Stage | None = None
    rates: list[float] | None = None
    rate_options: list[str] = field(default_factory=lambda: [RATE])
    curves: dict[str, str] | None = None

    @property
    def stages(self) -> list[Stage]:
        return [Stage(self.configs, self.options), *([self.then] if self.then else [])]


@dataclass(frozen=True)
class Tuning:
    """How learning rates are chosen: the one with the highest mean of the last accuracy over the tuning seeds.

    Args:
        seeds: none of the comparison's.
        rates: to choose from.
        benchmark: on the training side, for example one on the training split.
        options: over those of the arms, for example fewer rounds.
    """

    seeds: list[int]
    rates: list[float]
    benchmark: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Methods side by side at the same budget.

    Args:
        arms: {name: Arm}.
        seeds: of every arm: order of prompts, sampling, and the warm starts.
        benchmark: whose accuracy is compared.
        target: the accuracy whose cost is read.
        run_dir: everything is written below it; the same command again goes on where it was.
        title: of the report; by default the name of run_dir.
        warm_starts: {name: Stage}, trained once for each seed and shared by the arms; their cost is not counted.
        tuning: how learning rates are chosen; without it the configs' hold.
        options: of all arms; an arm's own win.
        axes: the costs at which accuracies are read.
        pairs: [first, second] curves whose differences are tested; by default all against the first curve.
        margin: differences within it are on par.
        parallel: runs at once, each with one thread.
        gpus: devices that the runs take in turn, one run each; by default the configs decide.
        notes: shown in the report.
    """

    arms: dict[str, Arm]
    seeds: list[int]
    benchmark: str
    target: float
    run_dir: str
    title: str | None = None
    warm_starts: dict[str, Stage] = field(default_factory=dict)
    tuning: Tuning | None = None
    options: dict = field(default_factory=dict)
    axes: list[str] = field(default_factory=lambda: [*AXES[:-1]])
    pairs: list[list[str]] | None = None
    margin: float = 0.05
    parallel: int = 2
    gpus: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise ConfigError(
                f"a comparison has {len(self.arms)} arms and the seeds {self.seeds}; expected some, each seed once"
            )
        for name in (*self.arms, *self.warm_starts):
            if not SAFE.fullmatch(name) or name == "before":
                raise ConfigError(f"an arm or warm start is named {name!r}; expected letters, digits, _ . - and not `before`")
        if unknown := [axis for axis in self.axes if axis not in AXES]:
            raise ConfigError(f"axes has {unknown[0]!r}; expected some of {', '.join(AXES)}")
        if not 0 < self.target < 1 or not 0 < self.margin < 1 or self.parallel < 1:
            raise ConfigError(
                f"target is {self.target}, margin {self.margin} and parallel {self.parallel}; expected shares between 0 and 1, "
                "and at least 1 run at once"
            )
        shown = [name for arm, each in self.arms.items() for name in self.curves_of(arm)]
        if len({*shown}) < len(shown):
            raise ConfigError(f"two curves have one name: {sorted(shown)}; expected each once")
        for pair in self.pairs or []:
            if len(pair) != 2 or not {*pair} <= {*shown}:
                raise ConfigError(f"pairs has {pair}; expected two of the curves {', '.join(shown)}")
        if self.tuning and (both := {*self.tuning.seeds} & {*self.seeds}):
            raise ConfigError(f"tuning.seeds has {min(both)}, which is a seed of the comparison; expected others")
        if not self.tuning and (arm := next((n for n, a in self.arms.items() if a.rates), None)):
            raise ConfigError(f"the arm {arm!r} has rates to choose from, and there is no tuning; set it, or leave rates out")
        for stage in [stage for arm in self.arms.values() for stage in arm.stages] + [*self.warm_starts.values()]:
            if missing := [path for path in stage.configs if not Path(path).is_file()]:
                raise ConfigError(f"no config file {missing[0]}; expected paths from the current folder")

    def curves_of(self, arm: str) -> dict[str, str]:
        """{shown name: benchmark} of an arm."""
        return self.arms[arm].curves or {arm: self.benchmark}

    def rates_of(self, arm: str) -> list[float]:
        """Rates to choose from; none where the config's holds."""
        own = self.arms[arm].rates
        return [] if self.tuning is None else self.tuning.rates if own is None else own

    @property
    def shown_pairs(self) -> list[tuple[str, str]]:
        names = [name for arm in self.arms for name in self.curves_of(arm)]
        return [(a, b) for a, b in self.pairs] if self.pairs is not None else [(name, names[0]) for name in names[1:]]


def arguments(configs: list[str], options: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    """The command-line arguments of a run, with the run folders in the place of `{name}`."""
    words = [word for path in configs for word in ("--config", path)]
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        for place, folder in places.items():
            text = text.replace("{" + place + "}", folder)
        words.append(f"--{name}={text}")
    return words
