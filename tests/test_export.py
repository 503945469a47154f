"""fulgurite export: from any checkpoint the logits of the model that was saved, with a card and the settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulgurite import cli
from fulgurite.models.tiny import TinyModel
from test_cli import TINY_RUN, refused

pytestmark = pytest.mark.xdist_group("export")

POLICY = yaml.safe_load(TINY_RUN)["model"]["init_args"]["policy"]
PAIR = {
    "class_path": "CoDistillGRPO",
    "init_args": {
        "small": POLICY,
        "large": {**POLICY, "hidden_size": 32, "seed": 1},
        "small_optimizer": {"learning_rate": 0.01},
        "large_optimizer": {"learning_rate": 0.01},
    },
}


def written(folder: Path, **settings) -> Path:
    """The config of a tiny run in `folder / run`."""
    config = yaml.safe_load(TINY_RUN) | {"run_dir": str(folder / "run")} | settings
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(3, 15)[None]).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two rounds that began with a folder."""
    from fulgurite.models.causal_lm import CausalLM
    from fulgurite.models.sources import load_tokenizer

    folder = tmp_path_factory.mktemp("export")
    tiny = TinyModel(**POLICY, seed=5)
    CausalLM.load(tiny).save(folder / "base", load_tokenizer(tiny))
    config = written(folder, model={"class_path": "GRPO", "init_args": {"policy": str(folder / "base")}})
    cli.main(["fit", "--config", str(config), "--model.init_args.optimizer.learning_rate", "0.01"])
    return folder / "run"


def test_the_newest_checkpoint_is_the_model_at_the_end(run, tmp_path, capsys):
    cli.main(["export", str(run), str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(run / "policy"))
    tokens = [AutoTokenizer.from_pretrained(folder).encode("12+3=") for folder in (tmp_path / "out", run.parent / "base")]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 5
    assert (tmp_path / "out" / "fulgurite.yaml").read_text() == (run / "config.yaml").read_text()


def test_an_earlier_checkpoint_is_the_model_of_then(run, tmp_path):
    path = run / "checkpoints" / "round-000001-update-000.ckpt"
    cli.main(["export", str(run), str(tmp_path / "out"), "--ckpt_path", str(path)])
    then, end, base = logits(tmp_path / "out"), logits(run / "policy"), logits(run.parent / "base")
    assert not torch.equal(then, end) and not torch.equal(then, base)
    saved = torch.load(path, weights_only=True)["state_dict"]
    model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    model.load_state_dict({k.removeprefix("trained.policy.hf."): v for k, v in saved.items() if k.startswith("trained.")})
    with torch.no_grad():
        assert torch.equal(then, model(torch.arange(3, 15)[None]).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {run.parent / 'base'}" in card and "| rounds | 1 |" in card and "| sampled | " in card


def test_two_models_are_two_folders(tmp_path):
    data = yaml.safe_load(TINY_RUN)["data"]
    data["init_args"]["advantage"] = None
    config = written(tmp_path, model=PAIR, data=data)
    cli.main(["fit", "--config", str(config), "--trainer.callbacks", "CoDistillation"])
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    for name in ("small", "large"):
        assert torch.equal(logits(tmp_path / "out" / name), logits(tmp_path / "run" / name))
    assert not torch.equal(logits(tmp_path / "out" / "small"), logits(tmp_path / "out" / "large"))


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2_sharded"])
def test_checkpoints_of_two_processes(strategy, tmp_path):
    config = written(tmp_path)
    options = ["--config", str(config), "--trainer.strategy", strategy, "--trainer.devices", "2"]
    command = [sys.executable, "-m", "fulgurite", "fit", *options]
    ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoints" / "round-000002-update-000.ckpt").is_dir() == (strategy == "fsdp2_sharded")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "run" / "policy"))


def test_what_cannot_be_exported_is_refused(run, tmp_path, capsys):
    assert "has no config.yaml; expected the folder of a run" in refused(capsys, "export", str(tmp_path), str(tmp_path / "o"))
    assert "exists; expected a folder to make" in refused(capsys, "export", str(run), str(tmp_path))
    text = refused(capsys, "export", str(run), str(tmp_path / "o"), "--ckpt_path", "best")
    assert "finds no checkpoint" in text and "checkpoint.best" in text
    assert "does not exist" in refused(capsys, "export", str(run), str(tmp_path / "o"), "--ckpt_path", "no.ckpt")
    assert not (tmp_path / "o").exists()
