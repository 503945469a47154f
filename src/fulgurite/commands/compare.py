"""fulgurite compare: trains arms on the same seeds, and reports which does better at the same budget, with intervals."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from statistics import fmean

from jsonargparse import ActionConfigFile, ArgumentParser
from tqdm import tqdm

from ..command_errors import fail, short_errors
from ..compare.html import html
from ..compare.jobs import Rates, arm_jobs, stages_of, tuning_jobs, tuning_stages, warm_start_jobs
from ..compare.plan import Plan, arguments
from ..compare.plots import phases_png, png
from ..compare.readings import last_accuracy, read_run
from ..compare.runner import run_all
from ..compare.statistics import Curve, summarise
from ..config_only import data_of
from ..run_record import environment
from ..types import ConfigError


def run(argv: list[str]) -> None:
    """Exit code 2: the plan or one of its configs cannot work; 130: interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with short_errors():
        plan = read_plan(argv[1:])
        check_benchmarks(plan)
        try:
            rates = chosen_rates(plan)
            run_all([*warm_start_jobs(plan, plan.seeds), *arm_jobs(plan, rates)], plan.parallel, plan.gpus, tell)
        except KeyboardInterrupt:
            fail(f"interrupted; the same command goes on from {plan.run_dir}", code=130)
        write(plan, report_of(plan, rates, shlex.join(["fulgurite", *argv])))


def read_plan(argv: list[str]) -> Plan:
    """The plan of a config file and options."""
    parser = ArgumentParser(prog="fulgurite compare", description=Plan.__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A file with the settings below.")
    parser.add_class_arguments(Plan, as_group=False)
    return Plan(**{k: v for k, v in vars(parser.instantiate_classes(parser.parse_args(argv))).items() if k != "config"})


def tell(line: str) -> None:
    """Prints a line above the bar."""
    tqdm.write(line)
    sys.stdout.flush()


def check_benchmarks(plan: Plan) -> None:
    """Makes what each config describes, without running it.

    Raises:
        ConfigError: a config cannot work, or does not have the benchmark that is read.
    """
    places = {name: f"{plan.run_dir}/{name}" for name in (*plan.warm_starts, "before")}
    for stage in plan.warm_starts.values():
        data_of(arguments(stage.configs, stage.options, {}))
    for name, arm in plan.arms.items():
        read = {*plan.curves_of(name).values(), *([plan.tuning.benchmark] if plan.rates_of(name) else [])}
        for stage in arm.stages:
            known = data_of(arguments(stage.configs, {**plan.options, **stage.options}, places)).benchmarks
            for benchmark in read:
                if not any(benchmark == each or benchmark.startswith(f"{each}_") for each in known):
                    raise ConfigError(
                        f"the arm {name!r} is read at the benchmark {benchmark!r}, and its config has "
                        f"{', '.join(known) or 'none'}; expected it among data.benchmarks"
                    )


def chosen_rates(plan: Plan) -> Rates:
    """The learning rate of each arm, None where its config's holds; runs the tuning and writes tuning.json."""
    rates: dict[str, float | None] = dict.fromkeys(plan.arms)
    if plan.tuning is None:
        return rates
    run_all([*warm_start_jobs(plan, plan.tuning.seeds), *tuning_jobs(plan)], plan.parallel, plan.gpus, tell)
    tried = {}
    for arm in plan.arms:
        scores = {
            rate: [last_accuracy(tuning_stages(plan, arm, rate, seed)[-1], plan.tuning.benchmark) for seed in plan.tuning.seeds]
            for rate in plan.rates_of(arm)
        }
        if scores:
            rates[arm] = max(sorted(scores), key=lambda rate: fmean(score or 0.0 for score in scores[rate]))
            tried[arm] = {"chosen": rates[arm], "accuracy": {f"{rate:g}": each for rate, each in scores.items()}}
    (Path(plan.run_dir) / "tuning.json").write_text(json.dumps(tried, indent=2) + "\n")
    return rates


def report_of(plan: Plan, rates: Rates, command: str) -> dict:
    """The numbers of the report, from what the runs have written; what was never measured is left out, and noted.

    Raises:
        ConfigError: nothing was measured.
    """
    curves, notes = [], [*plan.notes]
    for arm in plan.arms:
        for name, benchmark in plan.curves_of(arm).items():
            runs = {seed: read_run(stages_of(plan, arm, seed), benchmark) for seed in plan.seeds}
            notes += [f"{name}, seed {seed}: failed before it was measured" for seed, run in runs.items() if run is None]
            settings = {"configs": ", ".join(path for stage in plan.arms[arm].stages for path in stage.configs)}
            settings |= {key: str(value) for stage in plan.arms[arm].stages for key, value in stage.options.items()}
            if rates[arm] is not None:
                settings["learning rate, chosen"] = f"{rates[arm]:g}"
            curves.append(Curve(name, benchmark, settings, {seed: run for seed, run in runs.items() if run}))
    seeds = {curve.name: curve.runs.keys() for curve in curves}
    curves = [curve for curve in curves if curve.runs]
    if not curves:
        raise ConfigError(f"no run was measured, so there is nothing to report; see the log.txt of the runs in {plan.run_dir}")
    pairs = [(first, second) for first, second in plan.shown_pairs if seeds[first] & seeds[second]]
    made = environment()
    return {
        "title": plan.title or Path(plan.run_dir).name,
        "command": command,
        "made_with": {
            **{name: made["packages"][name] for name in ("fulgurite", "torch", "transformers")},
            "commit": made["git"]["commit"] or "unknown",
            "platform": made["platform"],
        },
        **summarise(curves, plan.axes, pairs, plan.target, plan.margin),
        "notes": notes,
    }


def write(plan: Plan, report: dict) -> None:
    """report.json, report.html, curves.png and phases.png in the folder of the comparison."""
    folder = Path(plan.run_dir)
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (folder / "report.html").write_text(html(report))
    (folder / "curves.png").write_bytes(png(report))
    (folder / "phases.png").write_bytes(phases_png(report))
    for axis in report["axes"]:
        for pair in axis["pairs"]:
            end = pair["end"]
            tell(
                f"{axis['axis']:<15} {pair['first']} - {pair['second']}: {100 * end['value']:+.1f} points "
                f"[{100 * end['low']:+.1f}, {100 * end['high']:+.1f}] {end['verdict']}"
            )
    tell(f"report: {folder / 'report.html'}")
