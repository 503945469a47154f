"""LoRA: adapters begin as nothing, alone are trained, and reach engines, exports and checkpoints merged."""

from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fulgurite import cli
from fulgurite.engines.vllm_engine import VLLMEngine
from fulgurite.models.adapters import LoRA, adapter_weights
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.types import ConfigError
from test_cli import TINY_RUN, refused
from tiny import TINY, VLLM_TINY, EvenDigits, OptimizerSpec, require_vllm_cpu, tiny_data, tiny_grpo, tiny_trainer

pytestmark = pytest.mark.xdist_group("adapters")

SHAPE = TinyModel("qwen3", hidden_size=48, intermediate_size=64, layers=3, heads=4, kv_heads=2, alphabet="0123456789+=#")
TOKENS = torch.arange(3, 13)[None]


def adapted(lora: LoRA = LoRA(rank=3, alpha=12), moved: bool = True) -> CausalLM:  # noqa: B008 - frozen
    model = CausalLM.load(SHAPE)
    model.add_adapters(lora)
    if moved:
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_adapters_begin_as_nothing_and_are_all_that_is_trained():
    plain, model = CausalLM.load(SHAPE), adapted(moved=False)
    assert torch.equal(logits(plain.hf), logits(model.hf))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    per_layer = {"q_proj": (48, 48), "k_proj": (48, 24), "v_proj": (48, 24), "o_proj": (48, 48)}
    per_layer |= {"gate_proj": (48, 64), "up_proj": (48, 64), "down_proj": (64, 48)}
    count = 3 * sum(3 * (a + b) for a, b in per_layer.values())
    assert sum(weight.numel() for weight in trained.values()) == count
    assert adapter_weights(plain.hf, LoRA(rank=3), plain.hf.get_output_embeddings()) == count
    assert adapter_weights(plain.hf, LoRA(rank=3, targets=["q_proj"]), plain.hf.get_output_embeddings()) == 3 * 3 * 96


def test_the_seed_makes_the_adapters():
    same, again, other = (dict(adapted(LoRA(rank=2, seed=seed), False).named_parameters()) for seed in (0, 0, 1))
    name = next(name for name in same if "lora_A" in name)
    assert torch.equal(same[name], again[name]) and not torch.equal(same[name], other[name])


def test_merged_weights_are_w_plus_b_a_and_have_the_names_of_the_plain_model():
    plain, model = dict(CausalLM.load(SHAPE).named_full_weights()), adapted()
    merged = dict(model.named_full_weights())
    assert list(merged) == list(plain)
    layer = model.hf.model.layers[1].mlp.up_proj
    want = plain["model.layers.1.mlp.up_proj.weight"] + 12 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged["model.layers.1.mlp.up_proj.weight"], want, atol=1e-7)
    assert torch.equal(merged["model.norm.weight"], plain["model.norm.weight"])


def test_a_whole_copy_with_merged_weights_computes_the_same(monkeypatch):
    model = adapted()
    copy = model.unsharded_like()
    weights = dict(copy.named_full_weights())
    for name, weight in model.named_full_weights():
        weights[name].copy_(weight)
    assert torch.allclose(logits(copy.hf), logits(model.hf), atol=1e-5)
    assert not torch.allclose(logits(copy.hf), logits(CausalLM.load(SHAPE).hf), atol=1e-2)


def test_frozen_weights_may_be_bfloat16_and_adapters_are_not():
    model = CausalLM.load(SHAPE, torch.bfloat16)
    model.add_adapters(LoRA(rank=2))
    kinds = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        model.score(TOKENS, torch.arange(10)[None] > 0).logprobs.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"targets": []}])
def test_settings_that_make_no_adapter_are_refused(settings):
    with pytest.raises(ConfigError, match="expected a rank of at least 1"):
        LoRA(**settings)
    with pytest.raises(ConfigError, match="no such layer; expected some of down_proj, gate_proj, "):
        adapted(LoRA(targets=["query"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    CausalLM.load(TINY).save(folder / "base", load_tokenizer(TINY))
    config = yaml.safe_load(TINY_RUN) | {"run_dir": str(folder / "run")}
    config["model"]["init_args"] |= {"policy": str(folder / "base"), "lora": {"rank": 2}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    cli.main(["fit", "--config", str(folder / "run.yaml")])
    cli.main(["fit", "--config", str(folder / "run.yaml"), "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    return folder / "run"


def test_a_run_moves_adapters_alone_and_leaves_a_merged_model(run, tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    saved = torch.load(run / "checkpoints" / "round-000003-update-000.ckpt", weights_only=True)["state_dict"]
    for name, weight in base.state_dict().items():
        before, _, last = f"trained.policy.hf.{name}".rpartition(".")
        kept = saved.get(f"{before}.{last}", saved.get(f"{before}.base_layer.{last}"))
        assert torch.equal(kept, weight), name
    assert max(float(weight.abs().max()) for name, weight in saved.items() if "lora_B" in name) > 0
    end = logits(AutoModelForCausalLM.from_pretrained(run / "policy"))
    cli.main(["export", str(run), str(tmp_path / "merged")])
    cli.main(["export", str(run), str(tmp_path / "alone"), "--adapters_only"])
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), end)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, tmp_path / "alone")), end, atol=1e-6)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(run.parent / "base")), end, atol=1e-4)


def test_a_whole_model_has_no_adapters_to_export(run, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(TINY_RUN.replace("RUN", str(tmp_path / "run")))
    cli.main(["fit", "--config", str(config)])
    assert "has no adapters" in refused(capsys, "export", str(tmp_path / "run"), str(tmp_path / "out"), "--adapters_only")


def test_vllm_gets_the_merged_weights(tmp_path):
    """Every load is compared with the trainer by checksums and by log-probabilities, and a wrong one stops the run."""
    require_vllm_cpu()
    module = tiny_grpo(policy=VLLM_TINY, lora=LoRA(rank=4), optimizer=OptimizerSpec(learning_rate=5e-2))
    data = tiny_data(task=EvenDigits(digits=1), engine=VLLMEngine(max_tokens=64))
    tiny_trainer(max_epochs=3, default_root_dir=tmp_path).fit(module, datamodule=data)
    assert int(module.updates) == 3 and module.last_update["mismatch/logprob_gap_mean_nats"] < 1e-4
