"""GRPO: group relative policy optimisation (arXiv 2402.03300).

For a group of G completions of one prompt with rewards r_i the credit is A_i = (r_i - mean r) / (std r + eps), and the
loss is

    L = mean over rows of mean over tokens of -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + kl_beta KL

with KL the divergence of the policy from a reference and rho = exp(log p - log p_old), the old log-probabilities being those
at the start of the round. With one update a round rho is exactly 1 and no pass for the old log-probabilities is made.

Differs from the paper:
- no KL term unless `kl_beta` is above 0.
- rows whose coefficient is exactly 0 are not computed when there is no KL term; they still count in the denominators.
- an update in which no row has a coefficient is not taken (momentum alone moves no weight); it counts as an empty
  minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..losses.aggregate import Aggregation, check_const_len, weighted_sum
from ..losses.compose import Component
from ..losses.importance import Importance, raw_weight
from ..losses.kl import Estimator, reverse_kl, token_kl
from ..losses.policy import Surrogate, check_settings, policy_loss
from ..losses.ratio import RatioLevel
from ..models.adapters import LoRA
from ..models.scoring import Scores
from ..models.tiny import TinyModel
from ..types import ConfigError, Minibatch, Segment
from .base import RoundModule
from .mismatch import mismatch_metrics, mismatch_values
from .optimizer import OptimizerSpec

SAMPLED = (Segment.SAMPLED,)


class GRPO(RoundModule):
    """One policy, and a frozen reference when `kl_beta` is above 0.

    The distance between the engine's and the trainer's log-probabilities is measured in every update, over the tokens
    trained on; `importance` also corrects for it. The KL term is not weighted.

    Args:
        policy: the model to train: a folder, a hub name, or a `TinyModel` made from its own settings.
        reference: the model the KL term pulls towards; by default the policy as it was at the start.
        optimizer: learning rate, schedule, weight decay, gradient clipping.
        eps_low: the ratio is clipped at 1 - eps_low where the credit is negative.
        eps_high: the ratio is clipped at 1 + eps_high where the credit is positive.
        dual_clip: upper bound of the loss, in units of the credit, where the credit is negative.
        ratio_level: one ratio per `token`, or per row: `sequence` (geometric mean) or `sequence_product`.
        surrogate: `clip` takes the smaller of the two terms; `cispo` clips the detached ratio and keeps every gradient.
        aggregation: how tokens become one number.
        const_len: tokens per row in the denominator of `seq_mean_token_sum_const`.
        importance: weights of the policy term against the engine's log-probabilities; None leaves them out.
        kl_beta: factor of the KL term.
        kl_estimator: `k1`, `k2`, `k3` from the sampled tokens, or `exact` over the vocabulary.
        lora: train low-rank adapters of the policy in place of its weights, which in bf16-mixed are then kept in bfloat16.
        activation_checkpointing: compute the activations of a layer again in the backward pass instead of keeping them; memory
            only, never changes the result.
        tokens_per_microbatch: tokens of one forward pass, padding included; memory only, never changes the result.
    """

    advantage_streams = ("policy",)
    model_arguments = ("policy", "reference")

    def __init__(
        self,
        policy: str | TinyModel,
        reference: str | TinyModel | None = None,
        optimizer: OptimizerSpec = OptimizerSpec(),  # noqa: B008 - frozen
        eps_low: float = 0.2,
        eps_high: float = 0.2,
        dual_clip: float | None = None,
        ratio_level: RatioLevel = "token",
        surrogate: Surrogate = "clip",
        aggregation: Aggregation = "seq_mean_token_mean",
        const_len: int | None = None,
        importance: Importance | None = None,
        kl_beta: float = 0.0,
        kl_estimator: Literal[Estimator, "exact"] = "k3",
        lora: LoRA | None = None,
        activation_checkpointing: bool = False,
        tokens_per_microbatch: int = 16384,
    ) -> None:
        check_settings(eps_low, eps_high, dual_clip, surrogate)
        if kl_beta < 0:
            raise ConfigError(f"kl_beta is {kl_beta}; expected 0 (no KL term) or more")
        if reference is not None and not kl_beta:
            raise ConfigError("reference is given but kl_beta is 0, so nothing reads it; set kl_beta, or leave reference out")
        check_const_len(aggregation, const_len)
        frozen = {"reference": policy if reference is None else reference} if kl_beta else {}
        super().__init__(
            {"policy": policy},
            frozen,
            {"policy": optimizer},
            tokens_per_microbatch,
            activation_checkpointing,
            adapters={"policy": lora},
        )
        self.eps_low, self.eps_high, self.dual_clip = eps_low, eps_high, dual_clip
        self.ratio_level, self.surrogate = ratio_level, surrogate
        self.aggregation, self.const_len = aggregation, const_len
        self.importance = importance
        self.kl_beta, self.kl_estimator = kl_beta, kl_estimator

    @property
    def components(self) -> dict[str, Component]:
        terms = {"policy": Component(1.0, self.aggregation, SAMPLED, "policy", self.const_len)}
        if self.kl_beta:
            terms["kl"] = Component(self.kl_beta, self.aggregation, SAMPLED, None, self.const_len)
        return terms

    def loss_columns(self, updates_per_round: int) -> tuple[str, ...]:
        old = ("old",) if updates_per_round > 1 else ()
        engine = ("engine",) if self.importance else ()
        return old + engine + (("reference",) if self.kl_beta and self.kl_estimator != "exact" else ())

    def column(self, name: str, rows: Minibatch) -> Tensor:
        model = {"old": self.trained["policy"], "reference": self.frozen.get("reference")}.get(name)
        if model is None:
            return super().column(name, rows)
        return model.score(rows.tokens, rows.keep(*SAMPLED), rows.temperature).logprobs

    def losses(self, rows: Minibatch, model: str) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor] | Tensor]]:
        keep = rows.keep(*SAMPLED)
        exact = self.kl_beta and self.kl_estimator == "exact"
        compare = self._exact_kl(rows, keep) if exact else None
        scores = self.trained["policy"].score(rows.tokens, keep, rows.temperature, compare)
        sums, measured = self.policy_term(rows, scores)
        if self.kl_beta:
            kl = scores.compared if exact else token_kl(scores.logprobs, rows.columns["reference"], self.kl_estimator, keep)
            sums["kl"] = weighted_sum(kl, keep, self.aggregation)
            measured["loss/kl"] = (torch.where(keep, kl, 0.0).sum(), keep.sum())
        return sums, measured

    def policy_term(
        self, rows: Minibatch, scores: Scores
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor] | Tensor]]:
        """`losses` of the component `policy` alone; `scores` are at least those of the sampled tokens."""
        keep = rows.keep(*SAMPLED)
        old = rows.columns.get("old", scores.logprobs.detach())
        weight, mismatch = None, {}
        if self.importance or "engine" in rows.columns:
            engine = rows.columns["engine"]
            mismatch = mismatch_values(old, engine, keep, self.importance)
            weight = self.importance and self.importance(raw_weight(old, engine, keep, self.importance.level))
        policy, metrics = policy_loss(
            scores.logprobs, old, keep, rows.coefficients["policy"],
            eps_low=self.eps_low, eps_high=self.eps_high, dual_clip=self.dual_clip,
            ratio_level=self.ratio_level, surrogate=self.surrogate, aggregation=self.aggregation, weight=weight,
        )  # fmt: skip
        measured = {**mismatch, **{f"loss/{name}": value for name, value in metrics.items()}}
        measured["loss/entropy"] = (torch.where(keep, scores.entropy, 0.0).sum(), keep.sum())
        return {"policy": policy}, measured

    def summarise(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        return mismatch_metrics(values, self.importance)

    def _exact_kl(self, rows: Minibatch, keep: Tensor):
        reference = self.frozen["reference"]
        with torch.no_grad():
            hidden = reference.hidden(rows.tokens, keep)

        def compare(logits: Tensor, chunk: slice) -> Tensor:
            with torch.no_grad():
                target = reference.head_logits(hidden[chunk], rows.temperature)
            return reverse_kl(logits, target)

        return compare
