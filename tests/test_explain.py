"""fulgurite explain: counts and bytes by hand, what would fit fits, and what a run that is out of memory is told."""

import sys
from pathlib import Path

import pytest
import torch

from fulgurite import cli
from fulgurite.budget import Setup, budget_of, what_would_fit
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.engines import vllm_engine
from fulgurite.engines.vllm_engine import VLLMEngine
from fulgurite.models.adapters import LoRA
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.memory import logits_bytes, size_of
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.codistill import CoDistillGRPO
from fulgurite.modules.grpo import GRPO
from fulgurite.parallel import FSDP2Strategy
from fulgurite.tasks.addition import Addition
from fulgurite.types import SamplingSpec
from test_cli import TINY_RUN, refused

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
SHAPE = TinyModel(hidden_size=256, intermediate_size=512, layers=6, heads=4, kv_heads=2, alphabet="0123456789+=#")
SMALL = TinyModel(hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2, alphabet="0123456789+=#")
HUGE = 1e15


def data(**settings) -> RolloutDataModule:
    given = {"prompts_per_step": 6, "completions_per_prompt": 4, "sampling": SamplingSpec(max_new_tokens=10)}
    return RolloutDataModule(Addition(1), **{**given, "max_prompt_tokens": 30, **settings})


def setup(device_bytes=HUGE, ranks=1, mixed=True, strategy=None, on_gpu=True) -> Setup:
    return Setup(ranks, mixed, strategy, on_gpu, device_bytes)


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: "found")


def test_the_size_of_a_model_is_that_of_the_loaded_one():
    size, model = size_of(SHAPE), CausalLM.load(SHAPE)
    assert size.weights == sum(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.hf.get_decoder().layers]
    assert (size.layer, size.layers, size.outside) == (layers[0], 6, size.weights - sum(layers))
    assert (size.hidden, size.intermediate, size.heads, size.kv_width) == (256, 512, 4, 2 * 64)


@pytest.mark.parametrize("shape", [(128, 256, 2, 2), (256, 768, 4, 1), (512, 1024, 8, 2)])
def test_activations_are_those_that_are_counted(shape):
    from activation_memory import TOKENS, kept_bytes

    hidden, intermediate, heads, kv_heads = shape
    size = size_of(TinyModel(hidden_size=hidden, intermediate_size=intermediate, layers=1, heads=heads, kv_heads=kv_heads))
    counted = (kept_bytes(*shape, 2) - kept_bytes(*shape, 1)) / TOKENS
    assert size.activations_per_token(mixed=True, checkpointing=False) == counted


def test_the_bytes_of_one_process_by_hand():
    module, weights = GRPO(SHAPE, tokens_per_microbatch=1000), size_of(SHAPE).weights
    budget = budget_of(module, data(), setup())
    per_token = 6 * (30 * 256 + 8 * 512 + 4 * 128 + 4 * 4 + 8)
    assert budget.update == {
        "weights": 4 * weights,
        "gradients": 4 * weights,
        "optimizer": 8 * weights,
        "bfloat16 copies": 2 * weights,
        "gathered layers": 0,
        "activations": 1000 * per_token,
        "logits": logits_bytes(on_gpu=True),
    }
    cache = 6 * 4 * (30 + 10) * 2 * 6 * 128 * 2
    assert budget.sampling == {
        "weights": 4 * weights,
        "optimizer": 8 * weights,
        "whole copy": 0,
        "bfloat16 copies": 2 * weights,
        "key-value cache": cache,
    }
    assert budget.needed == max(sum(budget.update.values()), sum(budget.sampling.values()))
    sparing = budget_of(module, data(), setup(mixed=False), checkpointing=True)
    assert sparing.per_token == 6 * 4 * 256 + 2 * per_token / 6 and sparing.update["bfloat16 copies"] == 0


def test_the_bytes_of_one_of_four_processes_by_hand(vllm):
    small, large = size_of(SMALL), size_of(SHAPE)
    module = CoDistillGRPO(SMALL, SHAPE, offload_optimizer=True)
    engine = VLLMEngine(memory_share=0.3)
    strategy = FSDP2Strategy(gather_dtype="bfloat16")
    budget = budget_of(module, data(engine=engine, advantage=None), setup(1e9, 4, strategy=strategy))
    both = small.weights + large.weights
    assert budget.update["weights"] == budget.update["gradients"] == 4 * both / 4
    assert budget.update["optimizer"] == 8 * large.weights / 4 and budget.sampling["optimizer"] == 0
    assert budget.update["bfloat16 copies"] == 0
    gathered = 2 * (2 * large.layer + large.outside) + 4 * (large.layer + large.outside)
    assert budget.update["gathered layers"] == gathered
    assert budget.sampling["engine"] == 0.3e9 and "engine" not in budget.update
    awake = budget_of(module, data(engine=VLLMEngine(0.3, 0.5, sleeps=False), advantage=None), setup(1e9, 4, strategy=strategy))
    assert awake.update["engine"] == awake.sampling["engine"] == 2**29 + 2 * small.weights
    offloaded = budget_of(module, data(advantage=None), setup(1e9, 4, strategy=FSDP2Strategy(cpu_offload=True)))
    assert offloaded.update["weights"] == offloaded.update["gradients"] == offloaded.update["optimizer"] == 0
    assert offloaded.sampling["whole copy"] == 4 * small.weights


def test_a_frozen_reference_has_weights_alone():
    alone, beside = (budget_of(GRPO(SHAPE, kl_beta=beta), data(), setup()) for beta in (0.0, 0.1))
    assert beside.update["weights"] == 2 * alone.update["weights"]
    assert beside.update["gradients"] == alone.update["gradients"] and beside.update["optimizer"] == alone.update["optimizer"]


def test_adapters_need_no_state_for_what_is_frozen():
    lora = LoRA(rank=2)
    budget = budget_of(GRPO(SHAPE, lora=lora), data(), setup())
    weights, adapters = size_of(SHAPE).weights, 6 * 2 * (2 * 512 + 2 * 384 + 3 * 768)
    assert budget.update["weights"] == 2 * weights + 4 * adapters
    assert budget.update["gradients"] == 4 * adapters and budget.update["optimizer"] == 8 * adapters
    assert budget.update["bfloat16 copies"] == budget.sampling["bfloat16 copies"] == 0
    sharded = budget_of(GRPO(SHAPE, lora=lora), data(), setup(ranks=2, strategy=FSDP2Strategy()))
    assert sharded.update["weights"] == (4 * weights + 4 * adapters) / 2
    assert sharded.update["bfloat16 copies"] == 2 * weights


def test_what_would_fit_fits(vllm):
    module = GRPO(SHAPE, tokens_per_microbatch=16384)
    needed = budget_of(module, data(), setup())
    short = setup(sum(needed.update.values()) - 0.5 * needed.update["activations"])
    tokens, checkpointing, *_ = what_would_fit(module, data(), short)
    assert checkpointing == "model.init_args.activation_checkpointing true"
    for number, fits in ((int(tokens.split()[1]), True), (int(tokens.split()[1]) + 256, False)):
        other = GRPO(SHAPE, tokens_per_microbatch=number)
        assert (budget_of(other, data(), short).needed <= short.device_bytes) == fits
    greedy = data(engine=VLLMEngine(memory_share=0.99))
    device = setup(1.2 * sum(needed.update.values()))
    (share,) = [way for way in what_would_fit(module, greedy, device) if "memory_share" in way]
    assert (
        budget_of(module, data(engine=VLLMEngine(memory_share=float(share.split()[1]))), device).needed <= device.device_bytes
    )
    assert what_would_fit(module, data(), setup(1000)) == []
    state = 16 * size_of(SHAPE).weights
    of_eight = setup(0.7 * state + logits_bytes(on_gpu=True), 8)
    lean = GRPO(SHAPE, tokens_per_microbatch=1)
    assert [way.split(" ", 1)[1] for way in what_would_fit(lean, data(prompts_per_step=8), of_eight)][-1].startswith("fsdp2")


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(TINY_RUN.replace("RUN", str(tmp_path / "run")))
    return str(path)


def test_the_command_prints_counts_and_bytes(config, capsys, tmp_path):
    cli.main(["explain", "--config", config, "--data.init_args.inner_epochs", "2", "--trainer.max_epochs", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GRPO, RolloutDataModule, 1 process"
    assert lines[2] == "rows      3 prompts_per_step x 2 = 6 an update, 6 on each process"
    assert lines[3] == "updates   1 x 2 inner_epochs = 2 a round, 50 rounds: 100"
    assert lines[4] == "tokens    at most 24 sampled a round, 1,200 in all"
    assert any(line.startswith("activations") for line in lines) and not (tmp_path / "run").exists()
    cli.main(["explain", "--config", config, "--trainer.devices", "3", "--trainer.strategy", "fsdp2"])
    assert "GRPO, RolloutDataModule, 3 processes" in capsys.readouterr().out


def test_the_trainer_may_name_a_strategy_by_its_class_and_a_precision_by_its_alias(config, capsys):
    for strategy in ('{"class_path": "lightning.pytorch.strategies.DDPStrategy"}', "ddp"):
        cli.main(["explain", "--config", config, "--trainer.strategy", strategy, "--trainer.devices", "2"])
    by_class, by_name = capsys.readouterr().out.split("GRPO, RolloutDataModule, ")[1:]
    assert by_class == by_name
    for precision in ("bf16", "bf16-mixed", "32-true"):
        cli.main(["explain", "--config", config, "--trainer.precision", precision])
    alias, mixed, whole = capsys.readouterr().out.split("GRPO, RolloutDataModule, ")[1:]
    assert alias == mixed != whole
    text = refused(capsys, "explain", "--config", config, "--trainer.devices", "0")
    assert "trainer.devices is 0; expected at least 1" in text


def test_what_does_not_fit_is_refused_with_what_would(config, capsys, monkeypatch):
    options = ["--device_gb", "0.2", "--model.init_args.tokens_per_microbatch", "999999"]
    text = refused(capsys, "explain", "--config", config, *options)
    assert "needs about" in text and "has 0.2" in text and "would fit: model.init_args.tokens_per_microbatch " in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device_gb" in refused(capsys, "explain", "--config", config, "--trainer.accelerator", "cuda")
    text = refused(capsys, "explain", "--config", config, "--model.init_args.policy", "runs/none/policy")
    assert "no model at runs/none/policy" in text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("you can't allocate memory: 9")]
)
def test_a_run_out_of_memory_says_what_to_change(config, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(GRPO, "losses", full)
    text = refused(capsys, "fit", "--config", config, "--model.init_args.tokens_per_microbatch", "4096", code=5)
    assert text.startswith(f"error: out of memory: {error}")
    assert "tokens_per_microbatch is 4096, try 2048; the engine's max_rows is 512, try 256" in text
    assert "activation_checkpointing" in text and "fulgurite explain" in text


def test_other_errors_of_a_run_are_left_as_they_are(config, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(GRPO, "losses", broken)
    with pytest.raises(RuntimeError, match="something else"):
        cli.main(["fit", "--config", config])
