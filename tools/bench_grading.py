"""Honest answers graded per second: the pool against Math-Verify in this process, interleaved, medians.

    python tools/bench_grading.py --pairs tests/grading_pairs.jsonl --repeats 5 --workers 2

Each repeat grades every pair once with each of the three, in turn; `trivial` sends a call that only returns its argument.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from pathlib import Path

import math_verify

from fulgurite.rewards.math_answer import grade
from fulgurite.rewards.pool import GraderPool

GRADE = "fulgurite.rewards.math_answer:grade"


def math_verify_grade(gold: str, answer: str) -> bool:
    """Math-Verify as its readme uses it, its time limits off; a bare short answer is put into a box."""
    prose = any(mark in answer for mark in ("\\boxed", "\n", "$", "A:", "####")) or len(answer.split()) > 6
    read = [
        math_verify.parse(text, parsing_timeout=None)
        for text in (gold if "$" in gold else f"${gold}$", answer if prose else f"\\boxed{{{answer}}}")
    ]
    return math_verify.verify(*read, timeout_seconds=None)


def rate(count: int, run) -> tuple[float, list]:
    started = time.perf_counter()
    results = run()
    return count / (time.perf_counter() - started), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [json.loads(line) for line in options.pairs.read_text().split("\n") if line]
    calls, expected = [(row["gold"], row["answer"]) for row in rows], [row["expected"] for row in rows]
    rates: dict[str, list[float]] = {
        "pool": [],
        "same grader, in process": [],
        "math-verify, in process": [],
        "pool, trivial": [],
    }
    with GraderPool(options.workers) as pool:
        graded = {
            "pool": lambda: [one.value and one.value[0] == "correct" for one in pool.map(GRADE, calls)],
            "same grader, in process": lambda: [grade(*call).outcome == "correct" for call in calls],
            "math-verify, in process": lambda: [math_verify_grade(*call) for call in calls],
            "pool, trivial": lambda: pool.map("builtins:len", [(answer,) for _, answer in calls] * 4) and expected,
        }
        for run in graded.values():
            run()
        verdicts = {}
        for _ in range(options.repeats):
            for name, run in graded.items():
                speed, verdicts[name] = rate(len(calls) * (4 if name.endswith("trivial") else 1), run)
                rates[name].append(speed)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{len(calls)} pairs, {options.workers} workers, {machine}, {options.repeats} repeats")
    for name, seen in rates.items():
        agreed = sum(bool(a) == b for a, b in zip(verdicts[name], expected, strict=True))
        false_positives = sum(bool(a) and not b for a, b in zip(verdicts[name], expected, strict=True))
        note = (
            ""
            if name.endswith("trivial")
            else f"  agreement {100 * agreed / len(calls):.2f} %, {false_positives} false positives"
        )
        print(f"{name:<26} {statistics.median(seen):8.0f}/s  ({min(seen):.0f} to {max(seen):.0f}){note}")


if __name__ == "__main__":
    main()
