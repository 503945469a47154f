"""`configs/gsm8k.yaml`, the config of a real user, with `tiny: true` on real rows: trained, measured, looked at, regraded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.xdist_group("gsm8k"),
    pytest.mark.skipif(not DATA.is_dir(), reason="the real rows of GSM8K and MATH-500 are not beside this checkout"),
]
LOCAL = {"train": {"path": str(DATA / "gsm8k" / "train.jsonl.gz")}, "test": {"path": str(DATA / "gsm8k" / "test.jsonl.gz")}}
MATH = {"test": {"path": str(DATA / "math500" / "test.jsonl"), "columns": {"question": "problem"}, "limit": 40}}
SMALL = [
    "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip


def fulgurite(*words: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "fulgurite", *words], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[str]]:
    """The run folder after two rounds, and the options that say where the rows are."""
    folder = tmp_path_factory.mktemp("gsm8k")
    overlay = yaml.safe_load((ROOT / "configs" / "eval" / "math500.yaml").read_text())
    for name, benchmark in overlay["data"]["init_args"]["benchmarks"].items():
        benchmark["task"]["init_args"]["splits"] = MATH
        benchmark["sampling"]["max_new_tokens"] = 12
        benchmark["limit"] = 3 if name == "math500" else 2
    (folder / "math500.yaml").write_text(yaml.safe_dump(overlay))
    options = [
        "--config", "configs/gsm8k.yaml", "--config", str(folder / "math500.yaml"), "--tiny", "true", *SMALL,
        "--run_dir", str(folder / "run"), "--data.init_args.task.init_args.splits", json.dumps(LOCAL),
        "--data.init_args.benchmarks.gsm8k.limit", "4", "--data.init_args.benchmarks.gsm8k.sampling.max_new_tokens", "12",
        "--data.init_args.prompts_per_step", "4", "--data.init_args.completions_per_prompt", "3",
        "--data.init_args.rewards.overlong.arguments", "{limit: 24, buffer: 24}",
        "--data.init_args.sampling.max_new_tokens", "24", "--trainer.max_epochs", "2",
        "--trainer.check_val_every_n_epoch", "1",
    ]  # fmt: skip
    fulgurite("fit", *options)
    return folder / "run", options


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_rounds_of_real_questions_with_two_rewards(run):
    folder, _ = run
    rounds = sorted((folder / "rounds").glob("*.completions.jsonl"))
    assert [path.name for path in rounds] == ["000000.completions.jsonl", "000001.completions.jsonl"]
    rows = [row for path in rounds for row in rows_in(path)]
    assert len(rows) == 2 * 4 * 3
    for row in rows:
        assert row["rewards"] == {"accuracy": 0.0, "overlong": pytest.approx(-len(row["token_ids"]) / 24)}
        assert row["reward"] == pytest.approx(sum(row["rewards"].values())) and row["failure"] == ""
    assert len({row["reward"] for row in rows}) > 1
    assert all(update["empty"] == 0 and update["grad_norm/policy"] > 0 for p in (folder / "rounds").glob("*.updates.jsonl")
               for update in rows_in(p))  # fmt: skip


def test_gsm8k_and_math_500_are_measured_in_every_validation(run):
    folder, _ = run
    rows = rows_in(folder / "evaluation.jsonl")
    assert [row["rounds"] for row in rows] == [1, 2]
    for row in rows:
        assert {name: numbers["prompts"] for name, numbers in row["benchmarks"].items()} == {
            "gsm8k": 4, "math500": 3, "math500_sampled": 2,
        }  # fmt: skip
        assert {"avg@1", "pass@4", "maj@4"} <= row["benchmarks"]["math500_sampled"].keys()
    assert list((folder / "checkpoints").glob("best-*"))  # by eval/gsm8k/accuracy


def test_a_look_before_training_shows_prompt_completion_answer_and_verdict(run):
    folder, options = run
    shown = fulgurite("predict", *options, "--n", "8", "--prompts", "2")
    rows = rows_in(folder / "predictions.jsonl")
    assert [sum(row["benchmark"] == name for row in rows) for name in ("gsm8k", "math500", "math500_sampled")] == [16] * 3
    assert len({row["text"] for row in rows[:8]}) > 4  # a greedy benchmark is sampled
    first = rows[0]
    assert first["prompt"].startswith("Please reason step by step, and put your final answer within \\boxed{}.")
    assert first["prompt"].endswith(first["metadata"]["question"]) and first["outcome"] == "ungradable"
    assert "  verdict     ungradable, read None, reference " in shown

    # The same rows with answers in them, judged again offline.
    answers = [r"so \boxed{" + first["reference"] + "}", r"\boxed{-1}", "#### " + first["reference"]]
    rows[0]["text"], rows[1]["text"], rows[2]["text"] = answers
    edited = folder / "edited.jsonl"
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = fulgurite("grade", "generations", str(edited), "--k", "1", "8")
    again = rows_in(folder / "edited.regraded.jsonl")
    assert [(row["outcome"], row["reward"]) for row in again[:4]] == [
        ("correct", 1.0), ("wrong", 0.0), ("correct", 1.0), ("ungradable", 0.0),
    ]  # fmt: skip
    assert "verdicts changed: 3 of 48" in printed
    numbers = {tuple(line.split()[:2]): line.split()[2:] for line in printed.splitlines()}
    assert numbers["gsm8k", "accuracy"] == ["0.0000", "0.1250"] and numbers["gsm8k", "pass@8"] == ["0.0000", "0.5000"]
    assert numbers["gsm8k", "maj@8"] == ["0.0000", "0.5000"]  # two of three votes
    lenient = fulgurite("grade", "generations", str(edited), "--data.init_args.task.init_args.read", "any")
    row = next(line.split()[2:] for line in lenient.splitlines() if line.split()[:2] == ["gsm8k", "ungradable"])
    assert float(row[0]) > float(row[1])  # more can be read


def test_every_overlay_of_configs_eval_is_measured(run, tmp_path):
    folder, options = run
    on_disk = {
        "gsm8k": {"path": str(DATA / "gsm8k" / "test.jsonl.gz")},
        **{name: {"path": str(DATA / name / "test.jsonl"), "columns": {"question": "problem"}} for name in ("amc23", "aime24")},
        "math500": MATH["test"],
        "minerva": {"path": str(DATA / "minerva" / "test.jsonl"), "columns": {"question": "problem"}, "limit": 10},
        "knights": None,
    }
    expected = {"gsm8k": 1.0, "math500": 1.0, "math500_sampled": 1.0}
    words = ["validate", *options, "--run_dir", str(tmp_path / "run"), "--data.init_args.max_prompt_tokens", "1900"]
    for path in sorted((ROOT / "configs" / "eval").glob("*.yaml")):
        overlay = yaml.safe_load(path.read_text())
        for name, benchmark in overlay["data"]["init_args"]["benchmarks"].items():
            if source := on_disk[path.stem]:
                benchmark["task"]["init_args"]["splits"] = {benchmark["split"]: source}
            benchmark["sampling"]["max_new_tokens"], benchmark["limit"] = 4, 1
            expected[name] = float(benchmark["limit"])
        (tmp_path / path.name).write_text(yaml.safe_dump(overlay))
        words += ["--config", str(tmp_path / path.name)]
    fulgurite(*words, "--data.init_args.benchmarks.gsm8k.limit", "1")
    (row,) = rows_in(tmp_path / "run" / "evaluation.jsonl")
    assert {name: numbers["prompts"] for name, numbers in row["benchmarks"].items()} == expected and len(expected) == 15
    assert {"avg@32", "pass@32", "maj@32"} <= row["benchmarks"]["aime24"].keys()
