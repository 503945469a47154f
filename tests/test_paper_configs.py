"""The configs of papers and the overlays of variants: their values by a table, and two rounds of each with tiny models."""

import json
from pathlib import Path

import pytest
import yaml

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from test_docs import parsed

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PAPERS = sorted((ROOT / "configs" / "papers").glob("*.yaml"))
VARIANTS = sorted((ROOT / "configs" / "variants").glob("*.yaml"))
OVERLONG = {"weight": 1.0, "function": "fulgurite.rewards.shaping.soft_overlong", "arguments": {"limit": 20480, "buffer": 4096}}
CPPO = {
    "model.optimizer.learning_rate": 1e-6, "model.optimizer.schedule": "cosine", "model.optimizer.weight_decay": 1e-4,
    "model.optimizer.max_grad_norm": 1.0, "model.kl_beta": 0.04, "model.kl_estimator": "k3", "model.dual_clip": 10.0,
    "model.eps_low": 0.2, "model.eps_high": 0.2, "data.completions_per_prompt": 16, "data.inner_epochs": 2, "data.fill_to": 128,
    "data.prompts_per_step": 8, "data.advantage.scale": "sample_std", "data.sampling.max_new_tokens": 2048,
    "data.sampling.temperature": 1.0, "data.max_prompt_tokens": 2048, "data.rewards.accuracy.weight": 2.0,
}  # fmt: skip
TSALLIS = {
    "model.policy": "Qwen/Qwen3-0.6B", "data.completions_per_prompt": 32, "data.sampling.max_new_tokens": 4096 - 128,
    "data.sampling.temperature": 1.0, "data.gold.after": "</think>", "data.advantage": None, "data.task": "QA",
    "data.steps_per_round": 1, "data.inner_epochs": 1, "q": 0.75,
}  # fmt: skip
CODISTILL = {
    "model.small_optimizer.learning_rate": 1e-6, "model.large_optimizer.learning_rate": 1e-6, "model.eps_low": 0.2,
    "model.eps_high": 0.2, "model.train_large": True, "data.completions_per_prompt": 14, "data.prompts_per_step": 32,
    "data.hints.tokens": 50, "data.hints.rounds": 7500 // 32, "data.sampling.max_new_tokens": 3072, "data.advantage": None,
    "data.max_prompt_tokens": 1024, "data.rewards.think.weight": 0.25, "data.rewards.answer.weight": 0.25, "kept": 8,
}  # fmt: skip
VALUES = {
    "codistill_qwen": CODISTILL | {"model.small": "Qwen/Qwen2.5-Math-1.5B", "model.large": "Qwen/Qwen2.5-Math-7B"},
    "codistill_llama": CODISTILL
    | {"model.small": "meta-llama/Llama-3.2-1B-Instruct", "model.large": "meta-llama/Llama-3.1-8B-Instruct"},
    "codistill_tail": {
        "model.optimizer.learning_rate": 1e-6, "model.kl_beta": 0.0, "data.advantage.scale": "none",
        "data.completions_per_prompt": 8, "data.prompts_per_step": 32,
    },
    "garl": TSALLIS | {"estimator": "garl"},
    "paft": TSALLIS | {"estimator": "paft"},
    "grpo": {
        "model.policy": "deepseek-ai/deepseek-math-7b-instruct", "model.optimizer.learning_rate": 1e-6, "model.kl_beta": 0.04,
        "model.kl_estimator": "k3", "data.completions_per_prompt": 64, "data.prompts_per_step": 1024 // 64,
        "data.sampling.max_new_tokens": 1024, "data.inner_epochs": 1, "data.steps_per_round": 1,
        "model.aggregation": "seq_mean_token_mean",
    },
    "two_grpo": {
        "model.policy": "Qwen/Qwen2.5-Math-1.5B", "model.optimizer.learning_rate": 1e-6,
        "model.optimizer.for_prompts_per_step": 32, "model.optimizer.warmup_updates": 10,
        "model.optimizer.schedule": "constant", "model.eps_low": 0.2,
        "model.eps_high": 0.28, "model.kl_beta": 0.0, "data.prompts_per_step": 256,
        "data.completions_per_prompt": 2, "data.advantage.scale": "pop_std", "data.sampling.max_new_tokens": 4096,
        "data.sampling.temperature": 1.0, "data.sampling.top_p": 1.0, "model.aggregation": "seq_mean_token_mean",
    },
    "dapo": {
        "model.optimizer.learning_rate": 1e-6, "model.optimizer.warmup_updates": 20 * 16, "model.optimizer.weight_decay": 0.1,
        "model.eps_low": 0.2, "model.eps_high": 0.28, "model.aggregation": "token_mean", "model.kl_beta": 0.0,
        "data.prompts_per_step": 512 // 16, "data.steps_per_round": 16, "data.completions_per_prompt": 16, "data.fill_to": 512,
        "data.zero_variance": "drop", "data.sampling.max_new_tokens": 20480, "data.rewards.overlong": OVERLONG,
        "data.rewards.accuracy.weight": 2.0,
    },
    "dr_grpo": {
        "model.policy": "Qwen/Qwen2.5-Math-7B", "model.optimizer.learning_rate": 1e-6, "model.kl_beta": 0.0,
        "model.optimizer.schedule": "constant", "model.aggregation": "seq_mean_token_sum_const", "model.const_len": 3000,
        "data.advantage.scale": "none", "data.completions_per_prompt": 8, "data.prompts_per_step": 128 // 8,
        "data.steps_per_round": 8, "data.sampling.max_new_tokens": 3000, "data.sampling.temperature": 1.0,
        "data.max_prompt_tokens": 1024,
    },
    "cppo_gsm8k": CPPO
    | {"model.policy": "Qwen/Qwen2.5-1.5B-Instruct", "rate": 0.875, "model.optimizer.warmup_updates": round(0.1 * 2 * 116)},
    "cppo_math": CPPO
    | {"model.policy": "Qwen/Qwen2.5-7B-Instruct", "rate": 0.75, "model.optimizer.warmup_updates": round(0.1 * 2 * 234)},
}  # fmt: skip


def value_at(config: dict, path: str):
    first, *rest = path.split(".")
    value = config[first]["init_args"]
    for key in rest:
        value = value[key]
    return value


def test_every_paper_has_a_row():
    assert {path.stem for path in PAPERS} == VALUES.keys()


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_paper_config_has_the_values_of_its_paper(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = path.read_text().splitlines()[0].split()[2:]
    config = parsed(command, capsys)
    for key, expected in VALUES[path.stem].items():
        if key in ("q", "estimator"):
            (tsallis,) = config["trainer"]["callbacks"]
            assert tsallis["init_args"] | {key: expected, "normalise": True, "p_min": 0.0} == tsallis["init_args"]
        elif key == "kept":
            *credit, sampling = config["trainer"]["callbacks"]
            assert sampling["init_args"] | {"keep": expected, "rule": "max_variance", "recentre": True} == sampling["init_args"]
            assert all(callback["init_args"] == {"alpha": 1.0, "const_len": None} for callback in credit)
        elif key == "data.task":
            assert value_at(config, key)["class_path"].endswith(f".{expected}")
        elif key == "rate":
            (pruning,) = config["trainer"]["callbacks"]
            assert pruning["init_args"] | {"rate": expected, "scope": "group", "divisor": "retained"} == pruning["init_args"]
        else:
            assert value_at(config, key) == expected, key


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_paper_config_says_where_it_is_from_what_to_expect_and_what_it_takes(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "arXiv" in " ".join(head) and "Budget: " in " ".join(head) and "Not yet run at this size." in " ".join(head)
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.skipif(not DATA.is_dir(), reason="the real rows are not beside this checkout")
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_paper_config_trains_two_rounds_of_a_tiny_model_on_real_rows(path, tmp_path):
    config = yaml.safe_load(path.read_text())
    data = config["data"]["init_args"]
    if data["task"]["class_path"] == "GSM8K":
        splits = {split: {"path": str(DATA / "gsm8k" / f"{split}.jsonl.gz"), "limit": 99} for split in ("train", "test")}
    elif data["task"]["class_path"] == "QA":
        rows = {"path": str(DATA / "convfinqa" / "dev.jsonl.gz"), "columns": {"pre_text": "text", "post_text": "questions"}}
        splits = {split: {**rows, "limit": 60} for split in ("train", "dev")}
        data |= {"max_prompt_tokens": 2000, "completions_per_prompt": 4, "benchmarks": {}}
    else:
        pool = str(DATA / "college_math" / "train_pool.jsonl")
        splits = {"train": {"path": pool, "columns": {"question": "problem"}, "limit": 99}}
    data["task"]["init_args"]["splits"] = splits
    fill = {"fill_to": 2 * data["fill_to"] // data["prompts_per_step"]} if data.get("fill_to") else {}
    earns = "rewards" in data  # then random text gets one that it earns too, so that there is something to learn
    data |= {"prompts_per_step": 2, "sampling": {"max_new_tokens": 6}, "max_fill_rounds": 1, **fill}
    data |= {"hints": {"tokens": 2, "rounds": 1}} if "hints" in data else {}
    settings = [callback["init_args"] for callback in config["trainer"].get("callbacks", [])]
    left = next((some["keep"] for some in settings if "keep" in some), data["completions_per_prompt"])
    data |= {"rewards": data["rewards"] | {"digits": {"function": "reward_functions.digits"}}} if earns else {}
    config["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 3, "accelerator": "cpu", "devices": 1,
                          "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
    config |= {"tiny": True, "run_dir": str(tmp_path / "run"), "checkpoint": {}}
    latent = "gold" in data  # then a gradient needs no reward
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cli.main(["fit", "--config", str(tmp_path / "config.yaml")])
    rounds = sorted((tmp_path / "run" / "rounds").glob("*.completions.jsonl"))
    assert len(rounds) == 2
    for completions in rounds:
        sampled = [json.loads(line) for line in completions.read_text().splitlines()]
        assert len(sampled) % data["completions_per_prompt"] == 0
        kept = sum(row["kept"] for row in sampled)
        assert (
            kept == len(sampled) // data["completions_per_prompt"] * left
            if not fill
            else 0 < kept <= fill["fill_to"] * data.get("steps_per_round", 1)
        )
    updates = [json.loads(line) for path in (tmp_path / "run" / "rounds").glob("*.updates.jsonl")
               for line in path.read_text().splitlines()]  # fmt: skip
    assert len(updates) == 2 * data.get("steps_per_round", 1) * data.get("inner_epochs", 1)
    if earns or latent:
        assert sum(update["empty"] for update in updates) < len(updates)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_names_its_paper_and_begins_with_a_command_that_works(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    first, second, *_ = path.read_text().splitlines()
    assert first.startswith("# fulgurite fit --config configs/quickstart/grpo.yaml --config configs/variants/")
    assert "arXiv" in second
    parsed(first.split()[2:], capsys)
