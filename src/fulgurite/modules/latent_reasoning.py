"""Reasoning as a latent variable before a known answer.

With z the sampled reasoning of row m, y* the gold answer that follows it, and coefficients c_m and b_m set by a callback,

    L = - 1/N sum over rows of [ c_m log p(z_m) + b_m log p(y* | z_m) ]

both summed over tokens, without a division by the length. Taken on completions of the very weights that it changes.
"""

from __future__ import annotations

from torch import Tensor

from ..losses.aggregate import weighted_sum
from ..losses.compose import Component
from ..losses.importance import Importance
from ..models.adapters import LoRA
from ..models.tiny import TinyModel
from ..types import Minibatch, Segment
from .grpo import GRPO, SAMPLED
from .optimizer import OptimizerSpec

GOLD = (Segment.GOLD,)


class LatentReasoning(GRPO):
    """One policy, trained on what it sampled and on gold answers; the streams are `policy` and `answer`.

    Its column `gold` holds the log-probabilities of the gold tokens.

    Args:
        policy: the model to train: a folder, a hub name, or a `TinyModel` made from its own settings.
        optimizer: learning rate, schedule, weight decay, gradient clipping.
        importance: weights of the sampled tokens against the engine's log-probabilities; None leaves them out.
        lora: train low-rank adapters of the policy in place of its weights, which in bf16-mixed are then kept in bfloat16.
        activation_checkpointing: compute the activations of a layer again in the backward pass instead of keeping them; memory
            only, never changes the result.
        tokens_per_microbatch: tokens of one forward pass, padding included; memory only, never changes the result.
    """

    model_arguments = ("policy",)

    def __init__(
        self,
        policy: str | TinyModel,
        optimizer: OptimizerSpec = OptimizerSpec(),  # noqa: B008 - frozen
        importance: Importance | None = None,
        lora: LoRA | None = None,
        activation_checkpointing: bool = False,
        tokens_per_microbatch: int = 16384,
    ) -> None:
        super().__init__(
            policy,
            optimizer=optimizer,
            surrogate="cispo",
            aggregation="seq_mean_token_sum",
            importance=importance,
            lora=lora,
            activation_checkpointing=activation_checkpointing,
            tokens_per_microbatch=tokens_per_microbatch,
        )

    @property
    def components(self) -> dict[str, Component]:
        return {**super().components, "answer": Component(1.0, self.aggregation, GOLD, "answer")}

    def column(self, name: str, rows: Minibatch) -> Tensor:
        if name != "gold":
            return super().column(name, rows)
        return self.trained["policy"].score(rows.tokens, rows.keep(*GOLD), rows.temperature).logprobs

    def losses(self, rows: Minibatch, model: str) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor] | Tensor]]:
        gold = rows.keep(*GOLD)
        scores = self.trained["policy"].score(rows.tokens, rows.keep(*SAMPLED, *GOLD), rows.temperature)
        sums, measured = self.policy_term(rows, scores)
        sums["answer"] = weighted_sum(-scores.logprobs, gold, self.aggregation, rows.coefficients["answer"])
        return sums, measured
