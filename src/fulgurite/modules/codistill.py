"""CoDistill-GRPO (arXiv 2605.08873): a small and a large policy learn from the completions of the small one.

With o_i ~ small at the start of the round, and coefficients set by the callback `CoDistillation`,

    small    -min(rho A~_i, clip(rho) A~_i)    rho = p_small / p_small at the start of the round
    large    -min(u A^_i, clip(u) A^_i)        u = p_large / p_small at the start of the round

A~ is the centred task reward with the reward for what the large model finds likely, A^ that of the task alone. u is far from 1
where the models differ, so a share of the large model's tokens is outside the clip window from the first update on: those that
it likes much more than the small one and that are to become likelier get no gradient, nor those that it likes much less and
that are to become less likely.

Differs from the paper:
- the normaliser of the loss is `aggregation`, by default a row's own length; what it is in the paper is not known here;
- a model without a row that has credit takes no part in an update, momentum moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from ..guards.vocabulary import check_same_tokens
from ..losses.aggregate import Aggregation, check_const_len
from ..losses.compose import Component
from ..losses.policy import check_settings, policy_loss
from ..losses.ratio import RatioLevel, log_ratio
from ..models.adapters import LoRA
from ..models.sources import load_tokenizer
from ..models.tiny import TinyModel
from ..types import ConfigError, Minibatch, Segment
from .base import RoundModule
from .mismatch import mismatch_metrics, mismatch_values
from .optimizer import OptimizerSpec

COMPLETION = (Segment.HINT, Segment.SAMPLED)


class CoDistillGRPO(RoundModule):
    """A small policy that samples and a large one of the same tokenizer. The streams are `small` and `large`.

    Its columns `small` and `large` hold the log-probabilities of the completions at the start of the round.

    Args:
        small: the model that samples: a folder, a hub name, or a `TinyModel` made from its own settings.
        large: likewise.
        small_optimizer, large_optimizer: learning rate, schedule, weight decay, gradient clipping.
        train_large: False keeps the large model as it is: a fixed teacher.
        eps_low: ratios are clipped at 1 - eps_low where the credit is negative.
        eps_high: ratios are clipped at 1 + eps_high where the credit is positive.
        ratio_level: one ratio per `token`, or per row: `sequence` (geometric mean) or `sequence_product`.
        aggregation: how tokens become one number.
        const_len: tokens per row in the denominator of `seq_mean_token_sum_const`.
        offload_optimizer: the state of a model's optimizer is on the device only while that model steps.
        small_lora, large_lora: train low-rank adapters of a model in place of its weights, which in bf16-mixed are then kept in
            bfloat16.
        activation_checkpointing: compute the activations of a layer again in the backward pass instead of keeping them; memory
            only, never changes the result.
        tokens_per_microbatch: tokens of one forward pass, padding included; memory only, never changes the result.
    """

    advantage_streams = ("small", "large")
    model_arguments = ("small", "large")
    hint_writer = "large"

    def __init__(
        self,
        small: str | TinyModel,
        large: str | TinyModel,
        small_optimizer: OptimizerSpec = OptimizerSpec(),  # noqa: B008 - frozen
        large_optimizer: OptimizerSpec = OptimizerSpec(),  # noqa: B008 - frozen
        train_large: bool = True,
        eps_low: float = 0.2,
        eps_high: float = 0.2,
        ratio_level: RatioLevel = "token",
        aggregation: Aggregation = "seq_mean_token_mean",
        const_len: int | None = None,
        offload_optimizer: bool = False,
        small_lora: LoRA | None = None,
        large_lora: LoRA | None = None,
        activation_checkpointing: bool = False,
        tokens_per_microbatch: int = 16384,
    ) -> None:
        check_settings(eps_low, eps_high, None, "clip")
        check_const_len(aggregation, const_len)
        pair = {"small": small} | ({"large": large} if train_large else {})
        optimizers = {"small": small_optimizer, "large": large_optimizer}
        frozen = {} if train_large else {"large": large}
        specs = {name: optimizers[name] for name in pair}
        adapters = {"small": small_lora, "large": large_lora}
        super().__init__(pair, frozen, specs, tokens_per_microbatch, activation_checkpointing, offload_optimizer, adapters)
        self.eps_low, self.eps_high, self.ratio_level = eps_low, eps_high, ratio_level
        self.aggregation, self.const_len = aggregation, const_len

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.strategy, DDPStrategy) and len(self.trained_names) > 1:
            raise ConfigError("trainer.strategy is ddp, which waits for the gradients of both models at once; use fsdp2")
        tokens = [load_tokenizer(self.sources[name]).get_vocab() for name in ("small", "large")]
        check_same_tokens(*tokens, ("model.small", "model.large"))

    @property
    def components(self) -> dict[str, Component]:
        return {
            name: Component(1.0, self.aggregation, COMPLETION, name, self.const_len, model=name) for name in self.trained_names
        }

    def loss_columns(self, updates_per_round: int) -> tuple[str, ...]:
        return ("small",)

    def column(self, name: str, rows: Minibatch) -> Tensor:
        if name not in ("small", "large"):
            return super().column(name, rows)
        return self.model_of(name).score(rows.tokens, rows.keep(*COMPLETION), rows.temperature).logprobs

    def losses(self, rows: Minibatch, model: str) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor] | Tensor]]:
        keep, old = rows.keep(*COMPLETION), rows.columns["small"]
        scores = self.trained[model].score(rows.tokens, keep, rows.temperature)
        loss, metrics = policy_loss(
            scores.logprobs, old, keep, rows.coefficients[model],
            eps_low=self.eps_low, eps_high=self.eps_high, ratio_level=self.ratio_level, aggregation=self.aggregation,
        )  # fmt: skip
        ratio = log_ratio(scores.logprobs.detach(), old, keep, "token").exp()
        outside = keep & ((ratio < 1 - self.eps_low) | (ratio > 1 + self.eps_high))
        metrics["outside_window"] = (outside.sum(), keep.sum())
        metrics["entropy"] = (torch.where(keep, scores.entropy, 0.0).sum(), keep.sum())
        measured = {f"loss/{model}_{name}": value for name, value in metrics.items() if name != "clip_fraction_dual"}
        if model == "small" and "engine" in rows.columns:
            measured |= mismatch_values(old, rows.columns["engine"], rows.keep(Segment.SAMPLED))
        return {model: loss}, measured

    def summarise(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        return mismatch_metrics(values)
