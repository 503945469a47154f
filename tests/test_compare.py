"""Plans, their runs and what is read of them; the runs themselves are stand-ins, but for the last test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tqdm import tqdm

from fulgurite.commands import compare
from fulgurite.compare import runner
from fulgurite.compare.jobs import arm_jobs, stages_of, tuning_jobs, warm_start_jobs
from fulgurite.compare.plan import Arm, Plan, Stage, Tuning, arguments
from fulgurite.compare.readings import last_accuracy, read_run
from fulgurite.types import ConfigError

ROOT = Path(__file__).parents[1]
FAKE = (sys.executable, str(ROOT / "tests" / "fake_runs.py"))
CONFIG = [str(ROOT / "configs" / "quickstart" / "grpo.yaml")]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(runner, "PROGRAM", FAKE)
    monkeypatch.setattr(runner, "POLL_S", 0.01)


def plan(folder, **settings) -> Plan:
    given = {
        "arms": {"slow": Arm(CONFIG, {"fake.gain": 0.05}), "fast": Arm(CONFIG, {"fake.gain": 0.2})},
        "seeds": [0, 1],
        "benchmark": "held",
        "target": 0.5,
        "run_dir": str(folder / "cmp"),
        "tuning": None,
    }
    return Plan(**{**given, **settings})


def go(jobs, parallel=2, gpus=()) -> list[str]:
    said = []
    runner.run_all(jobs, parallel, gpus, said.append)
    return said


def calls(folder: Path) -> list[str]:
    return [line.strip() for line in (folder / "calls.txt").read_text().splitlines()]


def test_arms_take_turns_seed_by_seed_on_shared_warm_starts(tmp_path):
    made = plan(tmp_path, warm_starts={"small": Stage(CONFIG, {"fake.rounds": 1})}, options={"m.policy": "{small}/policy"})
    jobs = [*warm_start_jobs(made, made.seeds), *arm_jobs(made, {"slow": None, "fast": None})]
    names = [job.name for job in jobs]
    assert names == ["warm start small seed 0", "warm start small seed 1"] + [
        f"{arm} seed {seed}" for seed in (0, 1) for arm in ("slow", "fast")
    ]
    assert (
        f"--m.policy={jobs[0].folder}/policy" in jobs[2].arguments
        and f"--m.policy={jobs[1].folder}/policy" in jobs[4].arguments
    )
    said = go(jobs)
    assert len(said) == 12 and said[-1].startswith("6/6") and all("finished" in line or "start" in line for line in said)
    assert calls(jobs[0].folder) == calls(jobs[2].folder) == ["fit"]
    assert (
        read_run([jobs[2].folder], "held").rows[0]["updates"] == 0
        and read_run([jobs[0].folder], "held").rows[0]["updates"] == 1
    )
    assert max(said.index(f"start  {n}") for n in names[:2]) < said.index("start  slow seed 0")
    assert go(jobs) == [], "what has ended is not run again"


def test_options_of_a_plan_file_stay_text_for_the_runs(tmp_path):
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "m", "patience": 1}}
    options = {"trainer.callbacks": [stopping], "trainer.max_epochs": 3, "model.rate": 0.001}
    arm = {"configs": CONFIG, "options": options, "then": {"configs": CONFIG, "options": options}}
    written = {
        "arms": {"a": arm},
        "seeds": [0],
        "benchmark": "held",
        "target": 0.5,
        "run_dir": str(tmp_path),
        "options": options,
    }
    written |= {"warm_starts": {"start": {"configs": CONFIG, "options": options}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    made = compare.read_plan(["--config", str(tmp_path / "plan.yaml")])
    read = [made.options, made.warm_starts["start"].options, *(stage.options for stage in made.arms["a"].stages)]
    assert read == [options] * 4
    words = arguments([], made.options, {})
    assert words == [f"--trainer.callbacks={json.dumps([stopping])}", "--trainer.max_epochs=3", "--model.rate=0.001"]


def test_at_most_so_many_run_at_once_with_one_thread_each_and_gpus_in_turn(tmp_path, monkeypatch):
    seen, alive, popen = [], set(), subprocess.Popen

    def watched(*args, **settings):
        process = popen(*args, **settings)
        alive.add(process)
        seen.append((sum(p.poll() is None for p in alive), settings["env"]))
        return process

    monkeypatch.setattr(subprocess, "Popen", watched)
    made = plan(tmp_path, options={"fake.sleep": 0.05})
    go(arm_jobs(made, dict.fromkeys(made.arms)), parallel=2, gpus=[4, 7])
    assert max(count for count, _ in seen) == 2 and len(seen) == 4
    assert all(env["OMP_NUM_THREADS"] == "1" for _, env in seen)
    assert {env["CUDA_VISIBLE_DEVICES"] for _, env in seen} == {"4", "7"}


def test_a_terminal_shows_how_far_all_and_each_of_them_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "tqdm", lambda **settings: tqdm(**{**settings, "disable": False}))
    made = plan(tmp_path, options={"fake.sleep": 0.3}, seeds=[0])
    go(arm_jobs(made, dict.fromkeys(made.arms)))
    shown = capsys.readouterr().err
    assert "0/2" in shown and "slow seed 0: round 2" in shown and "fast seed 0: round 3" in shown


@pytest.mark.parametrize(("code", "state"), [("3", "stopped by a guard"), ("1", "failed"), ("4", "failed")])
def test_runs_that_end_badly_are_recorded_and_the_others_go_on(tmp_path, code, state):
    made = plan(tmp_path, arms={"bad": Arm(CONFIG, {"fake.dies": int(code)}), "good": Arm(CONFIG)})
    jobs = arm_jobs(made, dict.fromkeys(made.arms))
    said = go(jobs)
    assert [line for line in said if "bad" in line and state in line and "the last words" in line]
    run = read_run(stages_of(made, "bad", 0), "held")
    assert (run.state, run.note) == (state, f"exit code {code}: the last words")
    assert len(run.rows) == 2 and read_run(stages_of(made, "good", 1), "held").state == "finished"
    go(jobs)  # a guard has spoken; a crash is tried again, from its checkpoint
    again = calls(stages_of(made, "bad", 0)[0])
    assert again == ["fit"] + ["fit last"] * (state == "failed")


def test_a_config_that_cannot_work_stops_everything(tmp_path):
    made = plan(tmp_path, arms={"good": Arm(CONFIG, {"fake.sleep": 5}), "bad": Arm(CONFIG, {"fake.bad": 1})})
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="bad seed 0 cannot run: fake.bad is given; expected nothing of the kind; its log is"):
        go(arm_jobs(made, dict.fromkeys(made.arms)))
    assert time.monotonic() - begin < 4, "and what runs is ended"


def test_a_run_whose_start_is_lost_is_not_run(tmp_path):
    made = plan(tmp_path, warm_starts={"small": Stage(CONFIG, {"fake.dies": 3})})
    jobs = [*warm_start_jobs(made, made.seeds), *arm_jobs(made, dict.fromkeys(made.arms))]
    said = go(jobs)
    assert sum("has not finished" in line for line in said) == 4
    assert read_run(stages_of(made, "slow", 0), "held") is None


def test_other_settings_are_not_mixed_into_a_run(tmp_path):
    made = plan(tmp_path)
    go(arm_jobs(made, dict.fromkeys(made.arms)))
    other = plan(tmp_path, options={"fake.rounds": 3})
    with pytest.raises(ConfigError, match=r"holds a run of other settings \(less there, --fake.rounds=3 asked for\)"):
        go(arm_jobs(other, dict.fromkeys(other.arms)))
    (stages_of(made, "slow", 0)[0] / "job.json").unlink()
    with pytest.raises(ConfigError, match="holds a run that is none of this comparison"):
        go(arm_jobs(made, dict.fromkeys(made.arms)))


def test_a_killed_comparison_goes_on_from_the_last_checkpoints(tmp_path):
    made = plan(tmp_path, options={"fake.sleep": 0.3, "fake.rounds": 5})
    script = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)
from pathlib import Path
from test_compare import FAKE, arm_jobs, go, plan, runner
runner.PROGRAM = FAKE
made = plan(Path({str(tmp_path)!r}), options={{"fake.sleep": 0.3, "fake.rounds": 5}})
go(arm_jobs(made, dict.fromkeys(made.arms)))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    first = stages_of(made, "slow", 0)[0]
    while len(list(first.glob("checkpoints/*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    time.sleep(0.5)
    done = len(list(first.glob("checkpoints/*")))
    assert done < 5 and runner.outcome_of(first) is None
    time.sleep(0.5)
    assert len(list(first.glob("checkpoints/*"))) == done, "its runs ended with it"
    go(arm_jobs(made, dict.fromkeys(made.arms)))
    assert calls(first) == ["fit", "fit last"]
    assert [row["updates"] for row in read_run([first], "held").rows] == [0, 1, 2, 3, 4, 5]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    made = plan(tmp_path)
    (job, *_) = arm_jobs(made, dict.fromkeys(made.arms))
    job.folder.mkdir(parents=True)
    (job.folder / "job.json").write_text(json.dumps(job.asked))
    (job.folder / "config.yaml").write_text("")
    (job.folder / "evaluation.jsonl").write_text('{"rounds": 0}\n')
    go([job])
    assert calls(job.folder) == ["fit"] and [row["updates"] for row in read_run([job.folder], "held").rows] == [0, 1, 2, 3, 4]


def test_readings_are_costs_without_validation_and_outcomes_by_prompt(tmp_path):
    made = plan(tmp_path)
    go(arm_jobs(made, dict.fromkeys(made.arms)))
    run = read_run(stages_of(made, "fast", 1), "held")
    assert run.rows[2] == {
        "prompts": 16, "updates": 2, "sampled_tokens": 200, "trained_tokens": 120, "cpu_seconds": 6, "gpu_seconds": 18
    }  # fmt: skip
    assert run.rows[0] == dict.fromkeys(run.rows[0], 0) and run.phases == {"train": 8, "sample": 4, "validate": 200}
    np.testing.assert_allclose(run.outcomes.mean(1), [0.15, 0.35, 0.55, 0.75, 0.95], atol=0.026)
    assert run.outcomes.shape == (5, 20) and run.outcomes[:, 0].all() and not run.outcomes[:, -1].any()
    with pytest.raises(ConfigError, match="has no benchmark 'other'"):
        read_run(stages_of(made, "fast", 1), "other")


def test_the_cost_of_a_second_stage_is_added_to_that_of_the_first(tmp_path):
    arm = Arm(CONFIG, {"fake.rounds": 2}, then=Stage(CONFIG, {"fake.rounds": 3, "m.policy": "{before}/policy"}))
    made = plan(tmp_path, arms={"both": arm})
    jobs = arm_jobs(made, {"both": 0.5})
    assert [job.name for job in jobs[:2]] == ["both seed 0 rate 0.5", "both seed 0 rate 0.5 then"]
    assert f"--m.policy={jobs[0].folder}/policy" in jobs[1].arguments
    assert [any("learning_rate=0.5" in word for word in job.arguments) for job in jobs[:2]] == [False, True]
    go(jobs)
    assert calls(jobs[1].folder) == ["fit"]
    run = read_run(stages_of(made, "both", 0), "held")
    assert [row["updates"] for row in run.rows] == [0, 1, 2, 3, 4, 5] and run.rows[-1]["cpu_seconds"] == 15
    assert run.phases["train"] == 10


def test_rates_are_chosen_on_the_tuning_seeds_and_then_hold(tmp_path):
    tuning = Tuning(seeds=[7, 8], rates=[0.1, 0.4, 0.2], benchmark="held", options={"fake.rounds": 2})
    arms = {
        "tuned": Arm(CONFIG, {"fake.rounds": 4}, rate_options=["fake.gain"]),
        "own": Arm(CONFIG, rates=[0.05, 0.15], rate_options=["fake.gain"]),
        "fixed": Arm(CONFIG, rates=[]),
    }
    made = plan(tmp_path, arms=arms, tuning=tuning)
    jobs = tuning_jobs(made)
    assert len(jobs) == 2 * (3 + 2) and all("--fake.rounds=2" in job.arguments for job in jobs)
    rates = compare.chosen_rates(made)
    assert rates == {"tuned": 0.4, "own": 0.15, "fixed": None}
    written = json.loads((tmp_path / "cmp" / "tuning.json").read_text())
    assert written["tuned"]["chosen"] == 0.4 and written["own"]["accuracy"]["0.15"] == pytest.approx([0.75, 0.8])
    main = arm_jobs(made, rates)
    assert "--fake.gain=0.4" in main[0].arguments and "--fake.rounds=4" in main[0].arguments
    assert not any("fake.gain" in word for word in main[2].arguments)
    assert last_accuracy(main[0].folder, "held") is None


def test_the_report_has_every_run_and_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "check_benchmarks", lambda plan: None)
    config = tmp_path / "plan.yaml"
    arms = {
        "slow": {"configs": CONFIG, "options": {"fake.gain": 0.05}},
        "fast": {"configs": CONFIG, "options": {"fake.gain": 0.2}},
    }
    arms["bad"] = {"configs": CONFIG, "options": {"fake.dies": 3}}
    settings = {"arms": arms, "seeds": [0, 1], "benchmark": "held", "target": 0.5, "run_dir": str(tmp_path / "cmp")}
    config.write_text(yaml.safe_dump({**settings, "notes": ["<i>"]}, sort_keys=False))
    compare.run(["compare", "--config", str(config), "--title", "of two"])
    folder = tmp_path / "cmp"
    report = json.loads((folder / "report.json").read_text())
    assert report["title"] == "of two" and report["notes"] == ["<i>"] and "--title 'of two'" in report["command"]
    (axis,) = [axis for axis in report["axes"] if axis["axis"] == "prompts"]
    ends = {curve["name"]: curve["end"]["value"] for curve in axis["curves"]}
    assert ends == pytest.approx({"slow": 0.325, "fast": 0.925, "bad": 0.225}, abs=0.026) and axis["budget"] == 32
    assert [(pair["first"], pair["second"]) for pair in axis["pairs"]] == [("fast", "slow"), ("bad", "slow")]
    assert [run["state"] for run in report["curves"][2]["runs"]] == ["stopped by a guard"] * 2
    page = (folder / "report.html").read_text()
    assert "of two" in page and "<i>" not in page
    assert (folder / "curves.png").read_bytes()[:4] == (folder / "phases.png").read_bytes()[:4] == b"\x89PNG"


def test_what_was_never_measured_is_noted_and_the_rest_reported(tmp_path):
    made = plan(tmp_path, arms={"slow": Arm(CONFIG), "fast": Arm(CONFIG), "lost": Arm(CONFIG, {"fake.falls": 1})})
    go(arm_jobs(made, dict.fromkeys(made.arms)))
    report = compare.report_of(made, dict.fromkeys(made.arms), "a command")
    assert [curve["name"] for curve in report["curves"]] == ["slow", "fast"]
    assert [(pair["first"], pair["second"]) for pair in report["axes"][0]["pairs"]] == [("fast", "slow")]
    assert report["notes"] == [f"lost, seed {seed}: failed before it was measured" for seed in (0, 1)]
    alone = plan(tmp_path, arms={"lost": made.arms["lost"]})
    with pytest.raises(ConfigError, match="no run was measured"):
        compare.report_of(alone, {"lost": None}, "a command")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"arms": {}}, "0 arms"),
        ({"seeds": [1, 1]}, r"the seeds \[1, 1\]"),
        ({"arms": {"a b": Arm(CONFIG)}}, "named 'a b'"),
        ({"warm_starts": {"before": Stage(CONFIG)}}, "named 'before'"),
        ({"axes": ["dollars"]}, "axes has 'dollars'; expected some of prompts, updates"),
        ({"target": 1.5}, "target is 1.5"),
        ({"margin": 0.0}, "margin 0.0"),
        ({"parallel": 0}, "parallel 0"),
        ({"pairs": [["fast", "none"]]}, "expected two of the curves slow, fast"),
        ({"arms": {"a": Arm(CONFIG), "b": Arm(CONFIG, curves={"a": "held"})}}, "two curves have one name"),
        ({"tuning": Tuning([1], [0.1], "held")}, "tuning.seeds has 1"),
        ({"arms": {"a": Arm(CONFIG, rates=[1.0])}}, "there is no tuning"),
        ({"arms": {"a": Arm(["nowhere.yaml"])}}, "no config file nowhere.yaml"),
    ],
)
def test_plans_that_cannot_work_are_refused(settings, word, tmp_path):
    with pytest.raises(ConfigError, match=word):
        plan(tmp_path, **settings)


def test_options_become_arguments():
    words = arguments(["a.yaml", "b.yaml"], {"x.y": 3, "z": [1, {"k": None}], "t": "{w}/p {other}"}, {"w": "/run"})
    assert words == ["--config", "a.yaml", "--config", "b.yaml", "--x.y=3", '--z=[1, {"k": null}]', "--t=/run/p {other}"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_comparison_of_the_repository_can_begin(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = compare.read_plan(["--config", str(path)])
    compare.check_benchmarks(made)
    assert len(made.seeds) >= 3 and made.tuning and Path(made.run_dir).name == path.stem


def test_benchmarks_are_looked_for_before_anything_runs(tmp_path):
    compare.check_benchmarks(plan(tmp_path, arms={"a": Arm(CONFIG)}, benchmark="sampled"))
    with pytest.raises(ConfigError, match="'a' is read at the benchmark 'held', and its config has sampled, greedy; expected"):
        compare.check_benchmarks(plan(tmp_path, arms={"a": Arm(CONFIG)}))


def test_two_real_arms_from_a_shared_warm_start(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-m", "fulgurite"))
    monkeypatch.chdir(ROOT)
    small = {"trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1, "trainer.limit_val_batches": 1}
    small |= {"data.init_args.prompts_per_step": 4}
    sampled = {"sampled": {"split": "held_out", "limit": 40, "sampling": {"max_new_tokens": 8}}}
    arm = {"model.init_args.policy": "{start}/policy", "data.init_args.benchmarks": sampled, "guards.max_all_equal": 1.1}
    made = {
        "arms": {
            "grpo": {"configs": CONFIG},
            "pairs": {"configs": CONFIG, "options": {"data.init_args.completions_per_prompt": 2}},
        },
        "warm_starts": {"start": {"configs": ["configs/quickstart/sft.yaml"], "options": small}},
        "options": {**small, **arm}, "seeds": [3], "benchmark": "sampled", "target": 0.5, "run_dir": str(tmp_path / "cmp"),
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    compare.run(["compare", "--config", str(tmp_path / "plan.yaml")])
    report = json.loads((tmp_path / "cmp" / "report.json").read_text())
    points = [curve["runs"][0]["points"] for curve in report["curves"]]
    assert [[point["prompts"] for point in run] for run in points] == [[0, 4, 8], [0, 4, 8]]
    assert (
        points[0][0]["accuracy"] == points[1][0]["accuracy"] and points[0][2]["sampled_tokens"] > points[1][2]["sampled_tokens"]
    )
    assert all(run[0]["cpu_seconds"] == 0 < run[1]["cpu_seconds"] < run[2]["cpu_seconds"] for run in points)
    assert os.path.getsize(tmp_path / "cmp" / "report.html") > 10_000
