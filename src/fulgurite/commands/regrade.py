"""fulgurite grade generations: judges saved completions again, with the tasks of a config, and measures the benchmarks anew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..callbacks.evaluation import read_rows
from ..command_errors import short_errors
from ..config_only import data_of
from ..data.task_datamodule import TaskDataModule
from ..metrics.generations import Row, measure_rows, rejudge
from ..types import ConfigError


def run(options: argparse.Namespace, of_run: list[str]) -> None:
    """Prints the numbers before and after, and writes the rows with their new verdicts. Exit code 2: it cannot work.

    Args:
        of_run: options of the run; without a `--config` among them that of the file's run folder comes first.
    """
    with short_errors():
        file = Path(options.file)
        if not file.is_file():
            raise ConfigError(f"no file at {file}; expected one that `predict` or evaluation.generations has written")
        named = any(word.split("=")[0] in ("--config", "-c") for word in of_run)
        config = [] if named else ["--config", str(config_of(file))]
        data, rows = data_of([*config, *of_run]), read_rows(file)
        again = [row for name, of_benchmark in by_benchmark(rows).items() for row in rejudged(data, name, of_benchmark)]
        before, after = measure_rows(rows, options.k), measure_rows(again, options.k)
        out = Path(options.out or f"{file.with_suffix('')}.regraded.jsonl")
        out.write_text("".join(json.dumps(row) + "\n" for row in again))
        changed = sum(old["outcome"] != new["outcome"] for old, new in zip(in_order(rows), again, strict=True))
        print(table(before, after), f"verdicts changed: {changed} of {len(again)}", f"rows: {out}", sep="\n")


def config_of(file: Path) -> Path:
    for folder in file.resolve().parents[:2]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise ConfigError(f"there is no config.yaml in the folder of {file} or above it; name the run's: --config FILE")


def by_benchmark(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["benchmark"], []).append(row)
    return found


def in_order(rows: list[Row]) -> list[Row]:
    return [row for of_benchmark in by_benchmark(rows).values() for row in of_benchmark]


def rejudged(data: TaskDataModule, name: str, rows: list[Row]) -> list[Row]:
    if name not in data.benchmarks:
        known = ", ".join(data.benchmarks) or "none"
        raise ConfigError(f"the file has the benchmark {name!r} and the config {known}; add the config that it was made with")
    return rejudge(rows, data.benchmarks[name].task or data.task)


def table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> str:
    """A line per benchmark and number, where it stood and where it stands."""
    lines = [f"{'benchmark':<24} {'measure':<22} {'before':>9} {'after':>9}"]
    for name, numbers in after.items():
        for measure in (*before[name], *(numbers.keys() - before[name].keys())):
            shown = [f"{of[measure]:.4f}" if measure in of else "-" for of in (before[name], numbers)]
            lines.append(f"{name:<24} {measure:<22} {shown[0]:>9} {shown[1]:>9}")
    return "\n".join(lines)
