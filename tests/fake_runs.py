"""Stands for `python -m fulgurite` in tests of what starts runs: no model, the files of a run in a tenth of a second.

`fake_runs.py VERB --config F ... --option=value ...`; options: `fake.rounds` evaluations, `fake.gain` accuracy per round,
`fake.dies` the exit code of the first attempt after one round, `fake.falls` before it, `fake.sleep` seconds a round.
"""

import json
import sys
import time
from pathlib import Path

PROMPTS = 20


def evaluate(run: Path, rounds: int, accuracy: float) -> None:
    outcomes = ["correct" if i < round(PROMPTS * accuracy) else "wrong" for i in range(PROMPTS)]
    rows = [{"benchmark": "held", "prompt_id": f"p{i:02d}", "outcome": outcome} for i, outcome in enumerate(outcomes)]
    (run / "generations").mkdir(parents=True, exist_ok=True)
    (run / "generations" / f"{rounds:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds = {"train": 2.0 * rounds, "sample": 1.0 * rounds, "validate": 50.0 * rounds}
    row = {
        "rounds": rounds,
        "prompts": 8 * rounds,
        "updates": rounds,
        "sampled_tokens": 100 * rounds,
        "trained_tokens": 60 * rounds,
        "seconds": {"cpu": seconds, "wall": {k: 3 * v for k, v in seconds.items()}} if rounds else None,
        "benchmarks": {"held": {"accuracy": accuracy}},
    }
    with (run / "evaluation.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def main(verb: str, *words: str) -> int:
    options = dict(word[2:].split("=", 1) for word in words if "=" in word)
    run, seed = Path(options["run_dir"]), int(options["seed_everything"])
    run.mkdir(parents=True, exist_ok=True)
    with (run / "calls.txt").open("a") as calls:
        calls.write(f"{verb} {options.get('ckpt_path', '')}\n")
    start, gain = 0.1 + 0.05 * seed, float(options.get("fake.gain", 0.1))
    if "fake.falls" in options:
        return 1
    if "fake.bad" in options:
        print("error: fake.bad is given; expected nothing of the kind", file=sys.stderr)
        return 2
    (run / "config.yaml").write_text("")
    done = len(list(run.glob("checkpoints/*")))
    if not done and options.get("trainer.num_sanity_val_steps") == "-1":
        evaluate(run, 0, start)
    for rounds in range(done + 1, int(options.get("fake.rounds", 4)) + 1):
        time.sleep(float(options.get("fake.sleep", 0)))
        evaluate(run, rounds, min(1.0, start + gain * rounds))
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / f"round-{rounds:06d}-update-000.ckpt").write_text("")
        if rounds == done + 1 == 1 and "fake.dies" in options:
            print("the last words")
            return int(options["fake.dies"])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
