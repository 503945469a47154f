"""fulgurite grade pairs: grades the answers of a file against their golds, and counts where the verdicts are as expected.

fulgurite grade generations: see `regrade`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ..rewards.pool import GraderPool

COLUMNS = {"gold": (str, list), "answer": str, "expected": bool}


def run(argv: list[str]) -> None:
    """Exit code 2: the command or the file cannot work."""
    parser = argparse.ArgumentParser("fulgurite grade", description="Grades answers in files.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="pairs|generations")
    pairs = kinds.add_parser(
        "pairs",
        help="grade answers against golds, and count where the verdicts are as expected",
        description="Rows need gold (text, or a list of texts), answer and expected (true or false).",
    )
    pairs.add_argument("file", help="one JSON object a line")
    pairs.add_argument("--out", help="where the verdicts go; FILE.verdicts.jsonl without it")
    pairs.add_argument("--workers", type=int, default=2, help="processes that grade (default 2)")
    pairs.add_argument("--time-limit-s", type=float, default=5.0, help="seconds for one answer, then its worker is killed (5)")
    pairs.add_argument("--memory-limit-mib", type=int, default=1024, help="memory of a worker (1024)")
    generations = kinds.add_parser(
        "generations",
        help="judge saved completions again, with the tasks of a config",
        description="FILE is predictions.jsonl or one of generations/ in a run folder. Further options are those of the run: "
        "--config FILE in place of the run folder's config.yaml, or --data.init_args.task.init_args.read any.",
    )
    generations.add_argument("file", help="rows that `predict` or evaluation.generations has written")
    generations.add_argument("--out", help="where the rows with their new verdicts go; FILE.regraded.jsonl without it")
    generations.add_argument("--k", type=int, nargs="*", default=[], help="avg@k, pass@k and maj@k to measure")
    options, of_run = parser.parse_known_args(argv[1:])
    if options.kind == "generations":
        from .regrade import run as regrade

        regrade(options, of_run)
        return
    if of_run:
        parser.error(f"unrecognized arguments: {' '.join(of_run)}")
    grade_pairs(options)


def grade_pairs(options: argparse.Namespace) -> None:
    """Prints the agreement and writes a verdict per row."""
    try:
        rows = read_pairs(options.file)
        with GraderPool(options.workers, options.time_limit_s, options.memory_limit_mib) as pool:
            started = time.monotonic()
            grades = grade_all(pool, rows)
        seconds = time.monotonic() - started
        out = Path(options.out or f"{options.file.removesuffix('.jsonl')}.verdicts.jsonl")
        out.write_text("".join(json.dumps(row | grade) + "\n" for row, grade in zip(rows, grades, strict=True)))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(summary([row["expected"] for row in rows], grades, seconds))
    print(f"verdicts: {out}")


def grade_all(pool: GraderPool, rows: list[dict]) -> list[dict]:
    """A verdict, extracted answer and reason per row; an answer whose worker had to be killed is ungradable."""
    returned = pool.map("fulgurite.rewards.math_answer:grade", [(row["gold"], row["answer"]) for row in rows])
    found = [one.value or ("ungradable", "", one.failure) for one in returned]
    return [dict(zip(("verdict", "extracted", "reason"), grade, strict=True)) for grade in found]


def read_pairs(path: str) -> list[dict]:
    """The rows of a file.

    Raises:
        ValueError: a line is no pair; the message names file and line. OSError: no such file.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected a JSON object ({error}); correct or drop the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, saw {line.strip()[:40]}; correct or drop the line")
        for name, kind in COLUMNS.items():
            if name not in row:
                raise ValueError(f"{where}: no column {name!r}; it has {', '.join(map(repr, sorted(row))) or 'none'}. Add it")
            if not isinstance(row[name], kind):
                raise ValueError(
                    f"{where}: {name} is {json.dumps(row[name])[:40]}; expected {wanted(name)}. Correct or drop the line"
                )
        if isinstance(row["gold"], list) and not (row["gold"] and all(isinstance(text, str) for text in row["gold"])):
            raise ValueError(
                f"{where}: gold is {json.dumps(row['gold'])[:40]}; expected {wanted('gold')}. Correct or drop the line"
            )
        rows.append({name: row[name] for name in COLUMNS})
    if not rows:
        raise ValueError(f"{path} has no rows; expected one JSON object a line with {', '.join(COLUMNS)}")
    return rows


def wanted(name: str) -> str:
    return {"gold": "a text or a list of texts", "answer": "a text", "expected": "true or false"}[name]


def summary(expected: list[bool], grades: list[dict], seconds: float) -> str:
    """The figures: what is not `correct` counts as refused, ungradable ones too."""
    correct = [grade["verdict"] == "correct" for grade in grades]
    agreed = sum(a == b for a, b in zip(expected, correct, strict=True))
    false_positives = sum(b and not a for a, b in zip(expected, correct, strict=True))
    false_negatives = sum(a and not b for a, b in zip(expected, correct, strict=True))
    ungradable = sum(grade["verdict"] == "ungradable" for grade in grades)
    return (
        f"pairs            {len(grades)}\n"
        f"agreement        {100 * agreed / len(grades):.2f} %\n"
        f"false positives  {false_positives}\n"
        f"false negatives  {false_negatives}\n"
        f"ungradable       {ungradable}\n"
        f"seconds          {seconds:.2f}"
    )
