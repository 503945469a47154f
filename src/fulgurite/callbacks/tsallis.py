"""GARL and PAFT (arXiv 2604.25907): credit between reinforcement (q = 0) and maximum likelihood (q = 1)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..credit.tsallis import effective_sample_size, garl, log_mean, paft, resample, tsallis_loss
from ..data.transforms import RoundTransform
from ..seeding import address
from ..selection.zero_variance import live_rows
from ..types import ConfigError, Round, Segment
from . import log_numbers, over_ranks

Estimator = Literal["garl", "paft"]
Weight = Literal["likelihood", "verifier"]
Resampling = Literal["multinomial", "systematic"]


class TsallisReweighting(Callback, RoundTransform):
    """Sets the credit of every row from its weight among the completions of its prompt.

    With `reward: likelihood` the weight is p(gold answer | prompt, sampled reasoning), which needs `data.gold` and the module
    `LatentReasoning`: a prompt that no completion solves still teaches. With `reward: verifier` it is the reward, which must
    not be negative; the module is then `GRPO`. Such a weight is 0 where nothing was solved, so it gives no help to a cold
    start: use it for tasks without a reference answer, and on warm starts.

    Logs once a round, over the sampled rows of all ranks, at the x of the round's first update: `tsallis/q`,
    `tsallis/mean_weight`, `tsallis/loss` (l_q of the mean weight of a prompt, mean over prompts with one),
    `tsallis/effective_sample_size` (completions, mean over prompts), `tsallis/largest_centred_weight` (|c| of GARL, without
    `normalise`) and `tsallis/unsolved_with_credit` (share of the groups whose rewards are all 0 and that have credit).

    Args:
        estimator: `garl` weighs every row, `paft` draws rows in proportion to their weights and trains on those.
        q: from 0 to 1.
        later_q: q from the round `switch_round` on, for example `q: 1`, `later_q: 0`.
        switch_round: counted from 0.
        reward: `likelihood` or `verifier`.
        leave_one_out: of `garl`: subtract the mean weight of the other completions from the credit of the reasoning.
        pathwise: credit the gold answer, too.
        normalise: divide by M^q, M completions of a prompt.
        p_min: the mean weight, where it amplifies, is taken as at least this.
        resampling: of `paft`: `multinomial` draws as in the paper, `systematic` with less variance.
    """

    stage = "advantage"

    def __init__(
        self,
        estimator: Estimator = "garl",
        q: float = 0.75,
        later_q: float | None = None,
        switch_round: int | None = None,
        reward: Weight = "likelihood",
        leave_one_out: bool = True,
        pathwise: bool = True,
        normalise: bool = True,
        p_min: float = 0.0,
        resampling: Resampling = "multinomial",
    ) -> None:
        for name, given, known in (
            ("estimator", estimator, Estimator),
            ("reward", reward, Weight),
            ("resampling", resampling, Resampling),
        ):
            if given not in get_args(known):
                raise ConfigError(f"TsallisReweighting.{name} is {given!r}; expected {' or '.join(get_args(known))}")
        for name, value in (("q", q), ("later_q", q if later_q is None else later_q)):
            if not 0 <= value <= 1:
                raise ConfigError(f"TsallisReweighting.{name} is {value}; expected 0 (reinforcement) to 1 (maximum likelihood)")
        if (later_q is None) != (switch_round is None) or (switch_round is not None and switch_round < 1):
            raise ConfigError(
                f"TsallisReweighting has later_q {later_q} and switch_round {switch_round}; expected both, from round 1 on, or "
                "none"
            )
        if not 0 <= p_min < 1:
            raise ConfigError(f"TsallisReweighting.p_min is {p_min}; expected 0 (no cap) to below 1")
        self.estimator, self.reward, self.resampling = estimator, reward, resampling
        self.q, self.later_q, self.switch_round = q, later_q, switch_round
        self.leave_one_out, self.pathwise, self.normalise, self.p_min = leave_one_out, pathwise, normalise, p_min
        self.streams = ("policy", "answer") if reward == "likelihood" else ("policy",)
        self.columns = ("gold",) if reward == "likelihood" else ()
        self.seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data, self.seed = trainer.datamodule, trainer.datamodule.seed
        if data.completions_per_prompt < 2 and self.estimator == "garl" and self.leave_one_out:
            raise ConfigError(
                "data.completions_per_prompt is 1, and the baseline of TsallisReweighting is the mean of the others; expected "
                "2 or more, or leave_one_out: false"
            )
        if self.reward == "verifier":
            if data.gold:
                raise ConfigError(
                    "TsallisReweighting has reward: verifier, which credits sampled answers, and data.gold replaces them; "
                    "expected reward: likelihood, or gold: null"
                )
            if pl_module.aggregation in ("seq_mean_token_mean", "token_mean"):
                rank_zero_warn(
                    f"model.aggregation is {pl_module.aggregation}, which divides by lengths, and the credit of "
                    "TsallisReweighting is that of whole completions; expected seq_mean_token_sum, or the gradient is another"
                )
            return
        if not data.gold:
            raise ConfigError(
                "TsallisReweighting has reward: likelihood, and data.gold is null; set it, with model.class_path "
                "LatentReasoning, or for a task without reference answers set reward: verifier"
            )
        if data.updates_per_round > 1:
            raise ConfigError(
                f"a round has {data.updates_per_round} updates, and the likelihood of an answer holds for the first; expected "
                "data.steps_per_round 1 and data.inner_epochs 1"
            )
        if data.sampling.temperature != 1 or data.sampling.top_p < 1 or data.sampling.top_k:
            raise ConfigError(
                f"data.sampling has temperature {data.sampling.temperature}, top_p {data.sampling.top_p} and top_k "
                f"{data.sampling.top_k}; expected 1, 1 and 0: reasoning must be sampled from the policy itself"
            )

    def q_of(self, number: int) -> float:
        """q in the round of this number."""
        return self.q if self.later_q is None or number < self.switch_round else self.later_q

    def transform(self, held: Round) -> Round:
        q, log_w = self.q_of(held.number), self.log_weights(held)
        if self.estimator == "garl":
            policy, answer = garl(log_w, q, self.leave_one_out, self.p_min)
        else:
            policy = answer = paft(log_w, resample(log_w, self._points(held, log_w.shape[1])), q, self.p_min)
        scale = float(log_w.shape[1]) ** -q if self.normalise else 1.0
        streams = {"policy": policy, "answer": answer * float(self.pathwise)}
        return held.with_coefficients(**{name: (streams[name] * scale).flatten() for name in self.streams})

    def log_weights(self, held: Round) -> Tensor:
        """(Q, M) float64 logarithms of the weights; -inf for a reward of 0 and for a row without a gold answer.

        Raises:
            ValueError: the groups differ in size.
            ConfigError: a reward is negative.
        """
        size = len(held) // max(1, len(held.prompts))
        if held.group_index.tolist() != [group for group in range(len(held.prompts)) for _ in range(size)]:
            raise ValueError("the groups of the round differ in size; expected all completions of every prompt, in order")
        if self.reward == "verifier":
            if (held.rewards < 0).any():
                raise ConfigError(
                    f"a reward is {float(held.rewards.min())}, and TsallisReweighting takes rewards as weights; expected none "
                    "below 0: give no negative reward"
                )
            return held.rewards.double().log().view(-1, size)
        gold = held.segments == int(Segment.GOLD)
        log_w = torch.where(gold, held.columns["gold"], 0.0).double().sum(1)
        return torch.where(gold.any(1), log_w, -torch.inf).view(-1, size)

    def _points(self, held: Round, size: int) -> Tensor:
        """(Q, M) uniform numbers, each prompt's from its own address."""
        points = torch.empty(len(held.prompts), size, dtype=torch.float64)
        generator = torch.Generator()
        for row, prompt in zip(points, held.prompts, strict=True):
            generator.manual_seed(address(self.seed, "paft", held.number, prompt.id, prompt.draw))
            row.uniform_(generator=generator)
        if self.resampling == "systematic":
            points = (points[:, :1] + torch.arange(size, dtype=torch.float64)) / size
        return points

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        q, log_w = self.q_of(sampled.number), self.log_weights(sampled)
        log_p = log_mean(log_w)
        weighted = log_p > -torch.inf
        unsolved = (sampled.rewards.view(log_w.shape) == 0).all(1)
        credited = live_rows(sampled.coefficients, sampled.group_index).view(log_w.shape).any(1)
        sums = over_ranks(
            trainer,
            {
                "groups": len(log_w),
                "weighted": int(weighted.sum()),
                "weight": float(log_w.exp().mean(1).sum()),
                "loss": float(tsallis_loss(log_p[weighted], q).sum()),
                "size": float(effective_sample_size(log_w).sum()),
                "unsolved": int((unsolved & credited).sum()),
            },
            sum,
        )
        centred = garl(log_w, q, log_w.shape[1] > 1, self.p_min)[0].abs()
        largest = over_ranks(trainer, {"largest": float(centred.max()) if len(centred) else 0.0}, max)["largest"]
        numbers = {"q": q, "largest_centred_weight": largest}
        if sums["groups"]:
            numbers |= {
                "mean_weight": sums["weight"] / sums["groups"],
                "effective_sample_size": sums["size"] / sums["groups"],
                "unsolved_with_credit": sums["unsolved"] / sums["groups"],
            }
        if sums["weighted"]:
            numbers["loss"] = sums["loss"] / sums["weighted"]
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        log_numbers(trainer, {f"tsallis/{name}": value for name, value in numbers.items()}, step)
