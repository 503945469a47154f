"""Two rounds of GRPO, unchanged, on real rows of GSM8K, from a config with a hub model and `tiny: true`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fulgurite.tasks.marked_answer import MarkedAnswer
from fulgurite.tasks.sources import Source
from fulgurite.types import Completion

ROWS = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl.gz"
CONFIG = Path(__file__).with_name("gsm8k.yaml")
real_rows = pytest.mark.skipif(not ROWS.is_file(), reason="the real rows of GSM8K are not beside this checkout")
NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?\nEnd with #### and the answer.\n"
)


@real_rows
def test_the_first_real_row_renders_and_is_judged_by_value():
    task = MarkedAnswer({"train": Source(str(ROWS), limit=2)})
    first, second = task.prompts("train")
    assert first.text == NATALIA and first.answer == "72" and second.answer == "10"
    verdicts = [task.judge(first, Completion((), (), "stop", text)) for text in ("48/2=24, 48+24=72 #### 72", "#### 48", "72")]
    assert [(v.outcome, v.reward) for v in verdicts] == [("correct", 1.0), ("wrong", 0.0), ("ungradable", 0.0)]


@real_rows
def test_two_rounds_on_real_rows_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "fulgurite", "fit", "--config", str(CONFIG), "--run_dir", str(tmp_path / "run"),
               "--data.init_args.task.init_args.splits.train.path", str(ROWS)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr[-3000:]
    rounds = sorted((tmp_path / "run" / "rounds").glob("*.completions.jsonl"))
    assert len(rounds) == 2
    rows = [json.loads(line) for path in rounds for line in path.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3
    known = {p.id: p for p in MarkedAnswer({"train": Source(str(ROWS), limit=64)}).prompts("train")}
    for row in rows:
        assert row["prompt"] == known[row["prompt_id"]].text
        assert row["outcome"] == MarkedAnswer({}).judge(known[row["prompt_id"]], Completion((), (), "", row["text"])).outcome
