"""Overlays for GPU machines: what they touch, that they parse over a config, and the tables of docs/engines.md."""

import shlex
import subprocess
import sys
from functools import wraps
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch.strategies import StrategyRegistry

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from fulgurite.budget import Setup, budget_of
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.engines import vllm_engine
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.engines.vllm_engine import VLLMEngine
from fulgurite.engines.vllm_server import VLLMServerEngine
from fulgurite.models.adapters import LoRA
from fulgurite.models.memory import size_of
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.grpo import GRPO
from fulgurite.tasks.addition import Addition
from test_docs import code, defaults_of, tables

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "engines.md"
CONFIGS = sorted((ROOT / "configs" / "hardware").glob("*.yaml"))
SHARES = {"one_24gb": 0.35, "one_80gb": 0.3, "eight_80gb": 0.5, "one_24gb_lora": 0.45}
ON_THIS_MACHINE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


class Reached(Exception):
    pass


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_an_overlay_touches_trainer_and_engine_only(path):
    overlay = yaml.safe_load(path.read_text())
    memory = {"model": {"init_args": {"lora": {"rank": 32, "alpha": 64}, "activation_checkpointing": True}}}
    assert {part: overlay.pop(part) for part in ("model",) if part in overlay} == (memory if "lora" in path.stem else {})
    assert set(overlay) == {"trainer", "data"} and set(overlay["data"]["init_args"]) == {"engine"}
    assert overlay["trainer"]["accelerator"] == "cuda" and overlay["trainer"]["precision"] == "bf16-mixed"
    assert overlay["trainer"]["devices"] == (8 if path.stem == "eight_80gb" else 1)
    assert overlay["trainer"].get("strategy", "auto") in ("auto", *StrategyRegistry.available_strategies())
    assert "not yet measured on such a machine" in path.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_an_overlay_builds_all_objects_of_its_command(path, monkeypatch, tmp_path):
    """Up to the start of the fit, with the CPU in place of the GPUs that this machine lacks."""
    built = {}

    @wraps(L.Trainer.fit)  # the command line reads its options from the signature
    def stop(self, model, datamodule, **_):
        built.update(trainer=self, module=model, data=datamodule)
        raise Reached

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(L.Trainer, "fit", stop)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: "found")
    command = shlex.split(path.read_text().splitlines()[0])[2:]
    with pytest.raises(Reached):
        cli.main([*command, *ON_THIS_MACHINE, "--run_dir", str(tmp_path / "run")])
    engine = built["data"].engine
    assert type(engine) is VLLMEngine and engine.memory_share == SHARES[path.stem]
    assert built["data"].prompts_per_step == 64 and built["trainer"].precision == "bf16-mixed"
    assert built["module"].tokens_per_microbatch == int(command[command.index("--model.init_args.tokens_per_microbatch") + 1])


def test_the_estimate_for_adapters_of_three_billion_weights(monkeypatch):
    """The shape of Qwen2.5-3B from its config alone; the sum leaves two GB of 25.7 for CUDA."""
    shape = TinyModel(hidden_size=2048, intermediate_size=11008, layers=36, heads=16, kv_heads=2, max_positions=32768)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: "found")
    overlay = yaml.safe_load((ROOT / "configs" / "hardware" / "one_24gb_lora.yaml").read_text())
    model, engine = overlay["model"]["init_args"], overlay["data"]["init_args"]["engine"]["init_args"]
    module = GRPO(shape, lora=LoRA(**model.pop("lora")), tokens_per_microbatch=4096, **model)
    data = RolloutDataModule(Addition(2), 64, 8, engine=VLLMEngine(**engine))
    assert size_of(shape).weights == pytest.approx(2.77e9, rel=0.01), "without the 0.31 of the vocabulary of 151,936"
    budget = budget_of(module, data, Setup(1, True, None, True, 25.7e9))
    assert 10e9 < sum(budget.sampling.values()) + 2 * 0.31e9 < 23.7e9 and sum(budget.update.values()) < 15e9


def numbers(row: list[str]) -> list[float]:
    return [float(cell.split()[0]) for cell in row]


def test_what_an_update_takes_adds_up():
    """Per GPU, in GB: 16 bytes of state and 2 of copies per weight, plus activations; shown to one decimal."""
    rows = [numbers(row) for row in tables(PAGE, "What fits") if row[0].endswith(" billion")]
    assert len(rows) == 5
    for weights, gpus, state, copies, mb_per_token, tokens, activations, total in rows:
        assert state == pytest.approx(16 * weights / gpus, abs=0.051)
        assert copies == pytest.approx(2 * weights, abs=0.051)
        assert activations == pytest.approx(mb_per_token * tokens / 1000, abs=0.051)
        assert total == pytest.approx(state + copies + activations, abs=0.051)
    counted = subprocess.run(
        [sys.executable, ROOT / "tools" / "activation_memory.py", "0.5B"], capture_output=True, text=True, check=True
    ).stdout
    assert rows[0][4] == round(float(counted.split()[1]), 1)


def test_what_sampling_takes_adds_up():
    rows = [row for row in tables(PAGE, "What fits") if row[0].startswith("`configs/")]
    assert {Path(code(row[0])) for row in rows} == {path.relative_to(ROOT) for path in CONFIGS if "lora" not in path.stem}
    for overlay, *cells in rows:
        weights, gpus, of_gpu, share, trainer, engine, held, total = numbers(cells)
        assert share == SHARES[Path(code(overlay)).stem]
        assert trainer == pytest.approx(12 * weights / gpus, abs=0.051)
        assert engine == pytest.approx(share * of_gpu, abs=0.051) and 2 * weights - 0.05 < held < engine
        assert total == pytest.approx(trainer + engine, abs=0.051) and total < of_gpu


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("The embedded engine", TransformersEngine),
        ("vLLM in the trainer's process", VLLMEngine),
        ("vLLM servers", VLLMServerEngine),
    ],
)
def test_the_keys_of_an_engine_are_those_of_the_code(heading, kind):
    documented = {code(key): yaml.safe_load(default.strip("`")) for key, default, _ in tables(PAGE, heading)}
    assert documented == defaults_of(kind)
