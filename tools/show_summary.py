"""Prints the summary of a run as a table: python tools/show_summary.py RUN_DIR"""

import json
import sys
from pathlib import Path


def table(run: Path) -> str:
    """The table of `summary.json` in a run's folder."""
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    lines = [f"\n{'held-out accuracy':<18} {'before':>22} {'after':>22}"]
    for name in before["interval_95"]:
        cells = []
        for point in (before, after):
            low, high = point["interval_95"][name]
            cells.append(f"{point[name]:.1%} [{low:.1%}, {high:.1%}]")
        lines.append(f"{name:<18} {cells[0]:>22} {cells[1]:>22}")
        for measure, value in after.get("at_k", {}).get(name, {}).items():
            if not measure.startswith("avg@"):  # the accuracy once more
                earlier = before["at_k"].get(name, {}).get(measure)
                lines.append(f"  {measure:<16} {'' if earlier is None else f'{earlier:.1%}':>22} {value:>22.1%}")
    lines.append(f"({before['prompts'][name]} prompts, 95% intervals)")
    lines.append(f"\n{summary['rounds']} rounds, {summary['updates']} updates, {summary['sampled_tokens']:,} tokens sampled, "
                 f"seed {summary['seed']}")  # fmt: skip
    cpu = summary["seconds"].get("cpu", {})
    spent = [f"{phase} {seconds:.0f}" for phase, seconds in cpu.items() if seconds >= 0.5]
    lines.append(f"CPU seconds of GRPO by phase: {', '.join(spent)}")
    lines.append(f"\nrun folder:  {run}\nlook at it:  .venv/bin/tensorboard --logdir {run}\n")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
