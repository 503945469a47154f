"""How the seconds of a step grow with prompts, group size, length and vocabulary, each over a factor of 16.

    python tools/bench_growth.py [--json FILE]

One thing grows at a time, all others stay at the smallest. The slope is that of the logarithm of the seconds over the last
factor of 4: 1 is in proportion, below 1 there is a part that does not grow.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

from bench import DEFAULTS, PARTS, make_model, medians, run_side

SMALLEST = DEFAULTS | dict(
    prompts=4, completions=4, prompt_tokens=16, new_tokens=16, vocabulary=400, rows_per_pass=512, steps=8
)  # fmt: skip
GROWING = {
    "prompts": ("prompts",),
    "group size": ("completions",),
    "length": ("prompt_tokens", "new_tokens"),
    "vocabulary": ("vocabulary",),
}


def measure(setting: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), setting)
        file = Path(folder) / "setting.json"
        file.write_text(json.dumps(setting | {"model": folder}))
        return medians([run_side("fulgurite", file, setting["threads"])], setting["warmup"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    report: dict[str, list[dict]] = {}
    for label, names in GROWING.items():
        report[label] = []
        for factor in (1, 2, 4, 8, 16):
            setting = SMALLEST | {name: SMALLEST[name] * factor for name in names}
            report[label].append(measure(setting))
        for part, title in PARTS.items():
            seconds = [step[part] for step in report[label]]
            slope = math.log(seconds[-1] / seconds[-3]) / math.log(4)
            row = "  ".join(f"{value:8.4f}" for value in seconds)
            print(f"{label:12} {title:16} {row}  s; slope {slope:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
