"""The smallest runs that are still real: a few hundred weights, one-digit sums."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from fulgurite import parallel  # noqa: E402, F401 - registers fsdp2
from fulgurite.data.rollout_datamodule import RolloutDataModule  # noqa: E402
from fulgurite.data.task_datamodule import Benchmark  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.modules.grpo import GRPO  # noqa: E402
from fulgurite.modules.optimizer import OptimizerSpec  # noqa: E402
from fulgurite.tasks.addition import Addition  # noqa: E402
from fulgurite.types import Completion, Prompt, SamplingSpec, Verdict  # noqa: E402

TINY = TinyModel(hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=2, alphabet="0123456789+=#")
VLLM_TINY = TinyModel(hidden_size=64, intermediate_size=64, layers=2, heads=2, kv_heads=2, alphabet="0123456789+=#")
"""vLLM's CPU build wants heads at least 32 wide."""
FIXED_TRAINER = dict(
    accelerator="cpu",
    devices=1,
    use_distributed_sampler=False,
    num_sanity_val_steps=0,
    inference_mode=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
)


class EvenDigits(Addition):
    """Addition with a reward that random text earns: the share of even digits, so that every round has something to learn."""

    reward_names = ("even",)

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        even = sum(c in "02468" for c in completion.text)
        reward = even / max(1, len(completion.token_ids))
        return Verdict("correct" if even else "wrong", {"even": reward}, reward, answer=completion.text)


def tiny_data(**settings) -> RolloutDataModule:
    settings = {
        "task": EvenDigits(digits=1),
        "prompts_per_step": 4,
        "completions_per_prompt": 3,
        "sampling": SamplingSpec(max_new_tokens=5),
        "benchmarks": {},
        **settings,
    }
    return RolloutDataModule(**settings)


def tiny_benchmarks() -> dict[str, Benchmark]:
    spec = SamplingSpec(max_new_tokens=4)
    return {
        "easy": Benchmark("held_out", spec, limit=5, prompts_per_batch=3),
        "hard": Benchmark("train", spec, limit=2),
    }


def tiny_grpo(**settings) -> GRPO:
    return GRPO(**{"policy": TINY, "optimizer": OptimizerSpec(learning_rate=1e-2), "tokens_per_microbatch": 64, **settings})


def tiny_trainer(**settings) -> L.Trainer:
    return L.Trainer(**{**FIXED_TRAINER, "max_epochs": 3, **settings})


def scored(model, prompts, completions, temperature):
    """Log-probabilities of the completions' tokens by a fresh pass over right-padded rows."""
    rows = [p.token_ids + c.token_ids for p, c in zip(prompts, completions, strict=True)]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        keep[i, len(prompts[i].token_ids) : len(row)] = True
    with torch.no_grad():
        logprobs = model.score(tokens, keep, temperature).logprobs
    return [logprobs[i][keep[i]].tolist() for i in range(len(rows))]


def require_vllm_cpu() -> None:
    """Skips a test, or a whole file from its top, where models on the CPU have no vLLM."""
    pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")
    if torch.cuda.is_available():
        pytest.skip("vLLM's CUDA build runs no models on the CPU; tests/gpu has its tests", allow_module_level=True)
