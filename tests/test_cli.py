"""The command line: what it refuses, what it writes, and how it resumes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import pytest
import yaml

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from tiny import require_vllm_cpu

ROOT = Path(__file__).parents[1]
TINY_RUN = """
run_dir: RUN
seed_everything: 3
model:
  class_path: GRPO
  init_args:
    policy: {hidden_size: 16, intermediate_size: 32, layers: 1, heads: 2, kv_heads: 2, alphabet: "0123456789+=#"}
    optimizer: {learning_rate: 0.01}
data:
  class_path: RolloutDataModule
  init_args:
    task: {class_path: tiny.EvenDigits, init_args: {digits: 1}}
    prompts_per_step: 3
    completions_per_prompt: 2
    sampling: {max_new_tokens: 4}
    benchmarks: {sampled: {split: held_out, limit: 4, sampling: {max_new_tokens: 4}}}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
checkpoint: {every_n_rounds: 1}
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TINY_RUN.replace("RUN", str(tmp_path / "run")))
    return path


def refused(capsys, *argv: str, code: int = 2) -> str:
    """The one sentence on stderr with which a command is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code == code
    text = capsys.readouterr().err
    sentences = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "Traceback" not in text
    return text[text.index("error: ") :]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.init_args.polici", "x"], "Option 'polici' is not accepted; did you mean policy?"),
        (["--model.init_args.optimizer.learning_rat", "1"], "did you mean learning_rate?"),
        (["--data.init_args.sampling.max_new_token", "1"], "did you mean max_new_tokens?"),
        (["--data.init_args.prompts_per_step", "many"], "Expected a <class 'int'>. Got value: many"),
        (["--data.init_args.prompts_per_step", "0"], "prompts_per_step is 0; expected at least 1"),
        (["--data.init_args.completions_per_prompt", "1"], "group of one has no advantage"),
        (["--data.init_args.advantage.baseline", "leave_one_out"], "set advantage.scale to none"),
        (["--data.init_args.sampling.temperature", "-1"], "sampling.temperature is -1.0; expected 0"),
        (["--model.init_args.optimizer.learning_rate", "-1"], "learning_rate -1.0"),
        (["--model.init_args.eps_low", "-1"], "eps_low is -1.0"),
        (["--model.init_args.optimizer.betas", "[0.9, 1.5]"], "expected betas from 0 to below 1"),
        (["--model.init_args.policy.heads", "5"], "hidden_size is 16; expected a multiple of 2 * heads = 10"),
        (["--model.init_args.policy", "nobody/nothing"], "no usable model at 'nobody/nothing'"),
        (["--data.init_args.benchmarks.sampled.split", "tset"], "no split 'tset'; expected train or held_out"),
        (["--checkpoint.every_n_rounds", "-1"], "every_n_rounds is -1"),
        (["--trainer.gradient_clip_val", "1.0"], "leave it out and set model.init_args.optimizer.max_grad_norm"),
        (["--trainer.accumulate_grad_batches", "2"], "leave it out and set model.init_args.tokens_per_microbatch"),
        (["--trainer.max_epoch", "3"], "arguments: --trainer.max_epoch 3; did you mean max_epochs?"),
        (["--gaurds.max_truncated", "1"], "did you mean guards?"),
        (["--model.init_args.tokens_per_microbatch", "0"], "tokens_per_microbatch is 0"),
        (["--model.init_args.aggregation", "seq_mean_token_sum_const"], "const_len is None"),
        (["--model.init_args.policy", "runs/none/policy"], "no model at runs/none/policy"),
        (["--model.class_path", "GRPPO"], "no class 'GRPPO'; did you mean GRPO?"),
        (["--trainer.strategy", "fsdp"], "use fsdp2"),
        (["--trainer.strategy", "ddq"], "trainer.strategy is ddq, which is unknown; did you mean ddp?"),
        (["--config", "none.yaml"], "File does not exist"),
        (["--ckpt_path", "last"], "finds no checkpoint"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--checkpoint.keep", "1"], "checkpoint.keep is 1; expected at least 2"),
        (["--guards.max_truncated", "2"], "guards.max_truncated is 2"),
        (["--trainer.callbacks+", "test_data.Stage", "--trainer.callbacks.name", "a", "--trainer.callbacks.stage", "advantage",
          "--trainer.callbacks.streams", "[policy]"], "has two owners: data.advantage and Stage"),
    ],
)  # fmt: skip
def test_a_bad_config_is_refused_in_one_sentence_before_a_model_loads(options, words, config, capsys, monkeypatch):
    from fulgurite.models.causal_lm import CausalLM

    def loads(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CausalLM, "load", loads)
    assert words in refused(capsys, "fit", "--config", str(config), *options)


def test_an_unknown_verb_is_refused_and_help_is_short(capsys):
    assert "no verb 'train'; expected one of fit" in refused(capsys, "train")
    cli.main(["--help"])
    assert "fulgurite fit --config" in capsys.readouterr().out
    cli.main(["--version"])
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_a_missing_warm_start_names_the_command_that_makes_it(capsys, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    text = refused(capsys, "fit", "--config", "configs/quickstart/grpo.yaml")
    assert text.strip() == (
        "error: no model at runs/quickstart/sft/policy; make it with: fulgurite fit --config configs/quickstart/sft.yaml"
    )


def test_a_refusal_takes_seconds_and_no_minutes(config):
    begin = os.times()
    command = [sys.executable, "-m", "fulgurite", "fit", "--config", str(config), "--data.init_args.prompts_per_step", "0"]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT / "tests", env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    )
    end = os.times()
    assert ran.returncode == 2 and "prompts_per_step is 0" in ran.stderr, ran.stderr[-500:]
    assert end.children_user + end.children_system - begin.children_user - begin.children_system < 30


def test_a_run_leaves_config_environment_results_and_refuses_to_be_overwritten(config, tmp_path, capsys):
    run = tmp_path / "run"
    cli.main(["fit", "--config", str(config)])
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["init_args"]["prompts_per_step"] == 3 and saved["seed_everything"] == 3
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith("2.13") and set(environment["git"]) == {"commit", "changes"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds"] == 2 and summary["seed"] == 3 and 0 <= summary["after"]["sampled"] <= 1
    assert (summary["before"]["rounds"], summary["after"]["rounds"]) == (1, 2)
    assert list(run.glob("events.out.tfevents.*")) and (run / "policy" / "model.safetensors").exists()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "round-000001-update-000.ckpt",
        "round-000002-update-000.ckpt",
    ]

    assert f"run folder:  {run}" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert "already holds a run; resume it with --ckpt_path last" in refused(capsys, "fit", "--config", str(config))
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before

    more = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    changed = ["--data.init_args.prompts_per_step", "4", "--model.init_args.optimizer.learning_rate", "0.02"]
    text = refused(capsys, *more, *changed, "--trainer.callbacks", "CompletionPruning", "--trainer.callbacks.rate", "0.5")
    assert "data.init_args.prompts_per_step was 3 and is now 4" in text and "learning_rate was 0.01 and is now 0.02" in text
    assert "trainer.callbacks was None and is now [{" in text and "--allow_changes true" in text
    assert not (run / "config.resume-1.yaml").exists()
    with pytest.warns(UserWarning, match="data.init_args.prompts_per_step was 3 and is now 4"):
        memory = ["--model.init_args.tokens_per_microbatch", "99", "--data.init_args.engine.class_path", "TransformersEngine"]
        cli.main([*more, *changed[:2], *memory, "--allow_changes", "true"])
    assert yaml.safe_load((run / "config.resume-1.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert "prompts_per_step was 4 and is now 3" in refused(capsys, *more), "the last settings hold, not the first"
    assert yaml.safe_load((run / "config.yaml").read_text()) == saved
    rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [(row["rounds"], row["prompts"]) for row in rows] == [(1, 3), (2, 6), (3, 10)]
    assert all(a["seconds"]["cpu"]["train"] < b["seconds"]["cpu"]["train"] for a, b in zip(rows, rows[1:], strict=False))

    curves = {p: p.read_bytes() for p in run.glob("events.out.tfevents.*")}
    capsys.readouterr()
    cli.main(["validate", "--config", str(config), "--ckpt_path", "last"])
    printed = capsys.readouterr().out
    assert re.search(r"^sampled +\d+\.\d% \[\d+\.\d%, \d+\.\d%\] of 4 prompts; ", printed, re.MULTILINE)
    assert "DataLoader" not in printed
    again = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert {p: p.read_bytes() for p in run.glob("events.out.tfevents.*")} == curves  # a point at step 0 would hide them
    assert again == rows  # validating a checkpoint repeats the curve's last point
    cli.main(["validate", "--config", str(config)])
    row0, *others = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert row0["rounds"] == 0 and row0["seconds"] is None and others == rows  # measuring the start loses nothing of the curve
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds"] == 3 and summary["after"]["sampled"] == rows[-1]["benchmarks"]["sampled"]["accuracy"]
    assert "already holds a run" in refused(
        capsys, "fit", "--config", str(config), "--run_dir", str(run), "--ckpt_path", str(shutil.copy(
            run / "checkpoints" / "round-000003-update-000.ckpt", tmp_path / "elsewhere.ckpt")))  # fmt: skip
    cli.main(["test", "--config", str(config), "--ckpt_path", "last"])
    assert [x for x in printed.splitlines() if x.startswith("sampled")] == [
        x for x in capsys.readouterr().out.splitlines() if x.startswith("sampled")
    ]
    cli.main(["predict", "--config", str(config), "--ckpt_path", "last"])
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 4 and set(predictions[0]) >= {"benchmark", "prompt_id", "prompt", "text", "outcome", "reward"}


def test_settings_that_change_no_result_may_change(config):
    cli.main(["fit", "--config", str(config)])
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "3", "--model.init_args.tokens_per_microbatch", "99"]
    more += ["--model.init_args.activation_checkpointing", "true", "--data.init_args.engine.class_path", "TransformersEngine"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the run goes on with the new setting")
        cli.main(["fit", "--config", str(config), *more])


def test_a_checkpoint_of_another_model_is_refused(config, capsys, tmp_path):
    cli.main(["fit", "--config", str(config)])
    wider = ["--model.init_args.policy.hidden_size", "32", "--allow_changes", "true"]
    text = refused(capsys, "fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "3", *wider)
    assert text.startswith("error: the checkpoint does not fit the model of the config: ") and "size mismatch" in text


def test_a_torn_checkpoint_is_seen_and_the_one_before_taken(config, capsys, tmp_path):
    cli.main(["fit", "--config", str(config)])
    more = ["fit", "--config", str(config), "--trainer.max_epochs", "3", "--ckpt_path"]
    first, last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert f"{last} is cut short" in refused(capsys, *more, str(last))
    middle = len(whole) // 2
    last.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.warns(UserWarning, match=f"{last.name} is damaged in .*; the checkpoint before it is taken"):
        cli.main([*more, "last"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [row["rounds"] for row in rows] == [1, 2, 3]


def test_a_full_disk_stops_the_run_and_loses_nothing(config, capsys, tmp_path, monkeypatch):
    cli.main(["fit", "--config", str(config)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}
    more = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", "writing.tmp")

        patch.setattr(L.Trainer, "save_checkpoint", full)
        text = refused(capsys, *more, code=5)
    assert "the disk is full at writing.tmp; what was saved before is whole" in text
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()} == before
    cli.main(more)


def test_printed_config_gives_itself_back(config, capsys, tmp_path):
    def printed(*argv: str) -> str:
        with pytest.raises(SystemExit):
            cli.main(["fit", *argv, "--print_config"])
        return capsys.readouterr().out

    first = printed("--config", str(config), "--data.init_args.inner_epochs", "2")
    (tmp_path / "full.yaml").write_text(first)
    assert "inner_epochs: 2" in first and printed("--config", str(tmp_path / "full.yaml")) == first


def test_overlays_append_callbacks_and_a_later_config_wins(config, capsys, tmp_path):
    (tmp_path / "over.yaml").write_text(
        "trainer:\n  callbacks+:\n  - {class_path: lightning.pytorch.callbacks.LearningRateMonitor}\n"
        "data: {init_args: {prompts_per_step: 5}}\nguards: {patience_rounds: 4}\n"
    )
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(config), "--config", str(tmp_path / "over.yaml"), "--print_config"])
    merged = yaml.safe_load(capsys.readouterr().out)
    assert merged["data"]["init_args"]["prompts_per_step"] == 5 and merged["data"]["init_args"]["completions_per_prompt"] == 2
    assert [c["class_path"] for c in merged["trainer"]["callbacks"]] == ["lightning.pytorch.callbacks.LearningRateMonitor"]
    assert merged["guards"]["patience_rounds"] == 4


# Each has tests of its own.
RUN_ELSEWHERE = ("hardware", "vllm_server.yaml", "gsm8k.yaml", "eval", "papers", "compare")
RUN_HERE = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if not {p.name, p.parent.name} & set(RUN_ELSEWHERE)]


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda p: p.name)
def test_every_config_runs_two_rounds_with_tiny_models(path, tmp_path, monkeypatch):
    if "VLLMEngine" in path.read_text():
        require_vllm_cpu()
    monkeypatch.chdir(ROOT)
    command = path.read_text().splitlines()[0].split()[2:]  # of the first line: an overlay names the config it lies over
    options = ["--tiny", "true", "--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "2"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1"]
    cli.main([*command, *options])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    models = [name for name in ("policy", "small", "large") if name in saved["model"]["init_args"]]
    assert saved["tiny"] is True and models
    for name in models:
        assert isinstance(saved["model"]["init_args"][name], dict)
        assert (tmp_path / "run" / name / "model.safetensors").exists()
        assert saved["model"]["init_args"][name]["seed"] == int(name == "large"), "two models of a pair are not the same one"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_is_short_and_opens_with_its_command(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 65
    verb = {"eval": "validate", "compare": "compare"}.get(path.parent.name, "fit")
    assert lines[0].startswith(f"# fulgurite {verb} --config ")
    assert f"--config {path.relative_to(ROOT)}" in lines[0]


def test_files_that_the_help_names_exist():
    for path in re.findall(r"configs/[\w./]+yaml", cli.USAGE):
        assert (ROOT / path).is_file()


def test_time_is_not_spent_on_help():
    begin = time.process_time()
    with pytest.raises(SystemExit):
        cli.main(["nonsense"])
    assert time.process_time() - begin < 0.1


def test_prediction_takes_a_number_of_completions_and_of_prompts(config, tmp_path):
    cli.main(["predict", "--config", str(config), "--n", "3", "--prompts", "2"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and len({row["prompt_id"] for row in rows}) == 2
    assert set(rows[0]) >= {"prompt", "text", "reference", "extracted", "outcome"}


def test_an_older_prediction_is_kept(config, tmp_path):
    rows = []
    for prompts in ("1", "2", "3"):
        cli.main(["predict", "--config", str(config), "--prompts", prompts])
        rows.append((tmp_path / "run" / "predictions.jsonl").read_text())
    names = ("predictions.1.jsonl", "predictions.2.jsonl", "predictions.jsonl")
    assert [(tmp_path / "run" / name).read_text() for name in names] == rows and len(set(rows)) == 3


def test_a_run_that_stops_at_a_number_of_updates_saves(config, tmp_path):
    cli.main(
        [
            "fit",
            "--config",
            str(config),
            "--trainer.max_steps",
            "1",
            "--trainer.max_epochs",
            "9",
            "--checkpoint.every_n_rounds",
            "5",
        ]
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["round-000001-update-000.ckpt"]


def test_a_fit_without_a_config_and_a_folder_without_a_checkpoint_say_what_to_do(config, tmp_path, capsys):
    assert "--config FILE" in refused(capsys, "fit") and "--config FILE" in refused(capsys, "explain")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    text = refused(capsys, "fit", "--config", str(config))
    assert "already holds a run; it has no checkpoint, so remove the folder, or choose another --run_dir" in text


def test_the_best_checkpoint_has_a_name(config, tmp_path, capsys):
    assert "was checkpoint.best set" in refused(capsys, "validate", "--config", str(config), "--ckpt_path", "best")
    cli.main(["fit", "--config", str(config), "--checkpoint.best", "eval/sampled/accuracy"])
    cli.main(["validate", "--config", str(config), "--ckpt_path", "best"])
    assert len(list((tmp_path / "run" / "checkpoints").glob("best-*.ckpt"))) == 1


def test_the_run_keeps_fingerprints_of_its_prompts(config, tmp_path):
    cli.main(["fit", "--config", str(config)])
    data = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    assert set(data) == {"training split", "benchmark sampled"} and data["training split"] != data["benchmark sampled"]
