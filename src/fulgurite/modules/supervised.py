"""Supervised fine-tuning: maximum likelihood of given completions.

L = - sum over gold tokens of log p(token | tokens before it) / number of gold tokens of the update
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses.aggregate import Aggregation, weighted_sum
from ..losses.compose import Component
from ..models.adapters import LoRA
from ..models.tiny import TinyModel
from ..types import Minibatch, Segment
from .base import RoundModule
from .optimizer import OptimizerSpec


class SupervisedFineTuning(RoundModule):
    """Trains one model on the gold tokens of its rows.

    Args:
        policy: the model to train: a folder, a hub name, or a `TinyModel` made from its own settings.
        optimizer: learning rate, schedule, weight decay, gradient clipping.
        aggregation: how tokens become one number.
        lora: train low-rank adapters of the policy in place of its weights, which in bf16-mixed are then kept in bfloat16.
        activation_checkpointing: compute the activations of a layer again in the backward pass instead of keeping them; memory
            only, never changes the result.
        tokens_per_microbatch: tokens of one forward pass, padding included; memory only, never changes the result.
    """

    def __init__(
        self,
        policy: str | TinyModel,
        optimizer: OptimizerSpec = OptimizerSpec(learning_rate=1e-5),  # noqa: B008 - frozen
        aggregation: Aggregation = "token_mean",
        lora: LoRA | None = None,
        activation_checkpointing: bool = False,
        tokens_per_microbatch: int = 16384,
    ) -> None:
        super().__init__(
            {"policy": policy},
            {},
            {"policy": optimizer},
            tokens_per_microbatch,
            activation_checkpointing,
            adapters={"policy": lora},
        )
        self.aggregation = aggregation

    @property
    def components(self) -> dict[str, Component]:
        return {"nll": Component(1.0, self.aggregation, (Segment.GOLD,))}

    def losses(self, rows: Minibatch, model: str) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        keep = rows.keep(Segment.GOLD)
        scores = self.trained["policy"].score(rows.tokens, keep)
        entropy = torch.where(keep, scores.entropy, 0.0).sum()
        return {"nll": weighted_sum(-scores.logprobs, keep, self.aggregation)}, {"loss/entropy": (entropy, keep.sum())}
