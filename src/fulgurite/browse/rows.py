"""The rounds in a run folder: where they are, their completions group by group, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ..callbacks.evaluation import read_rows
from ..types import ConfigError

COMPLETIONS = re.compile(r"(\d{6,})(?:\.rank(\d+))?\.completions\.jsonl")


def round_files(run: Path) -> dict[int, list[Path]]:
    """{round: its files of completions, one a rank}, rounds and ranks in order.

    Raises:
        ConfigError: the folder is not that of a run, or the run has written no completions.
    """
    folder = run / "rounds"
    if not (folder.is_dir() or (run / "config.yaml").is_file()):
        raise ConfigError(
            f"{run} has neither rounds nor a config.yaml; expected the folder of a run, give the `run_dir` of its config"
        )
    names = [(COMPLETIONS.fullmatch(path.name), path) for path in folder.glob("*.completions.jsonl")]
    found = sorted((int(name[1]), int(name[2] or 0), path) for name, path in names if name)
    if not found:
        raise ConfigError(
            f"{run} has no rounds/*.completions.jsonl; expected a run that samples, train it with `samples.jsonl: true`"
        )
    return {number: [path for *_, path in files] for number, files in groupby(found, itemgetter(0))}


def groups_of(files: Iterable[Path]) -> list[dict]:
    """{group, prompt_id, prompt, rows} of every group in the files of a round; a row is one of the file without these keys."""
    keys = ("group", "prompt_id", "prompt")
    return [
        dict(zip(keys, shared, strict=True))
        | {"rows": [{key: value for key, value in row.items() if key not in keys} for row in rows]}
        for file in files
        for shared, rows in groupby(read_rows(file), lambda row: tuple(map(row.get, keys)))
    ]


def summary(number: int, groups: list[dict], updates: list[dict]) -> dict[str, float | None]:
    """The numbers of a round over all its groups: counts, means, shares between 0 and 1, and the loss of its last update.

    A reward that was not finite is left out of the mean; None: there is nothing to take a number from.
    """
    rows = [row for group in groups for row in group["rows"]]
    return {
        "round": number,
        "prompts": len(groups),
        "completions": len(rows),
        "reward": mean(row["reward"] for row in rows if row["reward"] is not None),
        "correct": mean(row["outcome"] == "correct" for row in rows),
        "kept": mean(row["kept"] for row in rows),
        "equal": mean(len({row["reward"] for row in group["rows"]}) == 1 for group in groups),
        "tokens": mean(len(row["token_ids"]) for row in rows),
        "loss": updates[-1]["loss"] if updates else None,
    }


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
