"""Micro-batches, padding and rows without credit cost memory and time and never change a gradient.

Ragged rows: prompts of 1 and 200 tokens, the end-of-sequence token first, last and absent. The models are float64, so that a
difference is a mistake and not the order of a sum.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import assert_same, fit, whole_logprobs
from torch.nn.utils.rnn import pad_sequence

from fulgurite.losses.aggregate import weighted_sum
from fulgurite.losses.importance import Importance
from fulgurite.losses.kl import reverse_kl, token_kl
from fulgurite.losses.policy import policy_loss
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.tiny import TinyModel
from fulgurite.modules import base
from fulgurite.modules.grpo import GRPO
from fulgurite.modules.latent_reasoning import LatentReasoning
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.modules.supervised import SupervisedFineTuning
from fulgurite.types import Minibatch, Segment
from tiny import TINY, EvenDigits, tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
EOS = 1
COMPLETIONS = [[EOS], [5, 6, EOS], [4, 8, 9, 3], [7, EOS], [EOS], [9, 9, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [13, 14]]
PROMPTS = [1, 200, 7, 1, 200, 3, 200]
CREDIT = torch.tensor([1.5, -0.5, 0.7, 0.0, -1.1, 0.4, 0.0], dtype=torch.float64)
TEMPERATURE, BETA, CONST_LEN = 0.7, 0.3, 12
KEPT = [len(completion) for completion in COMPLETIONS]
DENOMINATORS = {
    "seq_mean_token_mean": len(KEPT),
    "token_mean": sum(KEPT),
    "seq_mean_token_sum_const": len(KEPT) * CONST_LEN,
    "seq_mean_token_sum": len(KEPT),
}
BUDGETS = {"one row each": 1, "some": 450, "all": 10_000}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr(CausalLM, "load", partial(CausalLM.load, dtype=torch.float64))


def ragged_rows(kind: Segment = Segment.SAMPLED) -> Minibatch:
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 16, (length,), generator=draw).tolist() for length in PROMPTS]
    pairs = list(zip(prompts, COMPLETIONS, strict=True))
    tokens = pad_sequence([torch.tensor(p + c) for p, c in pairs], batch_first=True)
    kinds = [[Segment.PROMPT] * len(p) + [kind] * len(c) for p, c in pairs]
    near_uniform = -math.log(64)  # what the policy gives each token, about; so the clip acts on some ratios only
    noise = (torch.randn(tokens.shape, generator=draw, dtype=torch.float64) / 4 for _ in range(3))
    columns = dict(zip(("old", "reference", "engine"), (near_uniform + n for n in noise), strict=True))
    return Minibatch(
        tokens=tokens,
        segments=pad_sequence([torch.tensor(row, dtype=torch.uint8) for row in kinds], batch_first=True),
        coefficients={"policy": CREDIT},
        columns=columns,
        temperature=TEMPERATURE,
    )


def grpo(aggregation: str, kl_estimator: str | None, tokens_per_microbatch: int, **settings) -> GRPO:
    kl = {"kl_beta": BETA, "kl_estimator": kl_estimator, "reference": TinyModel(**{**vars(TINY), "seed": 1})}
    return GRPO(
        policy=TINY, optimizer=STILL, aggregation=aggregation, tokens_per_microbatch=tokens_per_microbatch,
        const_len=CONST_LEN if aggregation.endswith("const") else None, **(kl if kl_estimator else {}), **settings,
    )  # fmt: skip


def gradient_of(module, rows: Minibatch) -> dict[str, torch.Tensor]:
    (gradient,) = fit(module, [rows]).gradients
    return gradient


def by_hand(module: GRPO, rows: Minibatch, weight: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The gradient from all logits of all rows at once; `weight` (N,) or (N, L) of the policy term."""
    policy, keep, mode = module.trained["policy"], rows.segments == int(Segment.SAMPLED), module.aggregation
    logp = whole_logprobs(policy.hf, rows.tokens, TEMPERATURE)
    bounds = dict(eps_low=module.eps_low, eps_high=module.eps_high, aggregation=mode)
    loss, _ = policy_loss(logp, rows.columns["old"], keep, CREDIT, **bounds, weight=weight)
    if module.kl_estimator == "exact":
        logits = (model.hf(rows.tokens[:, :-1]).logits / TEMPERATURE for model in (policy, module.frozen["reference"]))
        kl = torch.nn.functional.pad(reverse_kl(*logits), (1, 0))
        loss = loss + BETA * weighted_sum(kl, keep, mode)
    elif module.kl_beta:
        loss = loss + BETA * weighted_sum(token_kl(logp, rows.columns["reference"], module.kl_estimator, keep), keep, mode)
    gradients = torch.autograd.grad(loss / DENOMINATORS[mode], list(module.trained.parameters()))
    return dict(zip(dict(module.trained.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("kl_estimator", [None, "k3", "exact"])
@pytest.mark.parametrize("aggregation", DENOMINATORS)
def test_grpo_has_the_same_gradient_in_any_micro_batches(aggregation, kl_estimator):
    rows = ragged_rows()
    for budget in BUDGETS.values():
        module = grpo(aggregation, kl_estimator, budget)
        assert_same(gradient_of(module, rows), by_hand(module, rows))


IMPORTANCE = {
    "token": Importance("token", "truncate", cap=1.2),
    "sequence": Importance("sequence", "mask", low=0.9, high=1.2),
    "sequence_product": Importance("sequence_product", "truncate", cap=0.6),
}


@pytest.mark.parametrize("level", IMPORTANCE)
def test_importance_weights_and_the_mismatch_are_the_same_in_any_micro_batches(level):
    """The mismatch is that of the tokens trained on: of the rows with credit, all but two."""
    rows, importance = ragged_rows(), IMPORTANCE[level]
    keep, live = rows.segments == int(Segment.SAMPLED), CREDIT != 0
    gap = rows.columns["old"] - rows.columns["engine"]
    if level == "token":
        raw, of_level = gap.exp(), lambda weight: weight[live][keep[live]]
    else:
        lengths = torch.tensor(KEPT) if level == "sequence" else 1
        raw, of_level = (torch.where(keep, gap, 0).sum(1) / lengths).exp(), lambda weight: weight[live]
    weight = (
        raw.clamp(max=importance.cap) if importance.mode == "truncate" else torch.where((raw >= 0.9) & (raw <= 1.2), raw, 0)
    )
    raws, weights, gaps = of_level(raw), of_level(weight), gap[live][keep[live]].abs()
    want = {
        "logprob_gap_mean_nats": gaps.mean(),
        "logprob_gap_p99_nats": gaps.quantile(0.99),
        "logprob_gap_max_nats": gaps.max(),
        "effective_sample_size": raws.sum() ** 2 / (len(raws) * (raws**2).sum()),
        "weight_mean": weights.mean(),
        "bounded": (weights != raws).double().mean(),
    }
    assert 0 < want["bounded"] < 1
    for budget in BUDGETS.values():
        module = grpo("token_mean", None, budget, importance=importance)
        recorder = fit(module, [rows])
        assert_same(recorder.gradients[0], by_hand(module, rows, weight))
        got = {name: recorder.updates[0][f"mismatch/{name}"] for name in want}
        assert got == pytest.approx({name: float(value) for name, value in want.items()}, rel=1e-12)


@pytest.mark.parametrize("aggregation", sorted(set(DENOMINATORS) - {"seq_mean_token_sum_const"}))
def test_supervised_fine_tuning_has_the_same_gradient_in_any_micro_batches(aggregation):
    rows = ragged_rows(Segment.GOLD)
    for budget in BUDGETS.values():
        module = SupervisedFineTuning(TINY, STILL, aggregation, tokens_per_microbatch=budget)
        got = gradient_of(module, replace(rows, coefficients={}, columns={}))
        nll = -whole_logprobs(module.trained["policy"].hf, rows.tokens)
        loss = weighted_sum(nll, rows.segments == int(Segment.GOLD), aggregation) / DENOMINATORS[aggregation]
        want = torch.autograd.grad(loss, list(module.trained.parameters()))
        assert_same(got, dict(zip(got, want, strict=True)))


def test_latent_reasoning_has_the_same_gradient_in_any_micro_batches():
    """Rows that end with gold tokens, some with them alone, one with none; each stream is 0 on some rows."""
    rows = ragged_rows()
    from_end = (rows.segments != int(Segment.PAD)).long().flip(1).cumsum(1).flip(1)
    gold = (rows.segments == int(Segment.SAMPLED)) & (from_end <= 2) & (torch.arange(len(rows)) != 2)[:, None]
    answer = torch.tensor([0.3, 0.0, 0.5, 0.7, 0.2, 1.1, 0.0], dtype=torch.float64)
    segments = rows.segments.masked_fill(gold, int(Segment.GOLD))
    rows = replace(rows, segments=segments, coefficients={"policy": CREDIT, "answer": answer}, columns={})
    for budget in BUDGETS.values():
        module = LatentReasoning(TINY, STILL, tokens_per_microbatch=budget)
        got = gradient_of(module, rows)
        logp = whole_logprobs(module.trained["policy"].hf, rows.tokens, TEMPERATURE)
        sampled = segments == int(Segment.SAMPLED)
        loss = -(CREDIT[:, None] * logp)[sampled].sum() - (answer[:, None] * logp)[gold].sum()
        want = torch.autograd.grad(loss / len(rows), list(module.trained.parameters()))
        assert_same(got, dict(zip(got, want, strict=True)))


@pytest.mark.parametrize("kl_estimator", [None, "k3", "exact"])
def test_padding_changes_nothing(kl_estimator):
    """Whatever the padding holds: other tokens, and columns that are not numbers."""
    rows = ragged_rows()
    tokens, segments = (torch.nn.functional.pad(t, (0, 37)) for t in (rows.tokens, rows.segments))
    padding = segments == int(Segment.PAD)
    columns = {k: torch.nn.functional.pad(v, (0, 37)).masked_fill(padding, torch.nan) for k, v in rows.columns.items()}
    padded = replace(rows, tokens=tokens.masked_fill(padding, 9), segments=segments, columns=columns)
    want, got = (gradient_of(grpo("token_mean", kl_estimator, 450, importance=Importance()), r) for r in (rows, padded))
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("aggregation", DENOMINATORS)
def test_skipping_rows_without_credit_changes_no_bit(aggregation, monkeypatch):
    forwards, score = [], CausalLM.score

    def counted(self, tokens, *rest):
        forwards.append(len(tokens))
        return score(self, tokens, *rest)

    monkeypatch.setattr(CausalLM, "score", counted)
    skipped = gradient_of(grpo(aggregation, None, 1), ragged_rows())
    assert sum(forwards) == 5
    monkeypatch.setattr(base, "rows_that_matter", lambda rows, components: torch.ones(len(rows), dtype=torch.bool))
    computed = gradient_of(grpo(aggregation, None, 1), ragged_rows())
    assert sum(forwards) == 5 + 7
    assert all(torch.equal(skipped[name], computed[name]) for name in computed)


def test_rows_with_credit_zero_are_skipped_without_changing_a_bit_of_the_gradient(monkeypatch):
    """Row by row, so that no other row's arithmetic depends on them: with and without their forward and backward passes."""
    rows, live = {}, []

    class Live(Callback):
        def on_round(self, trainer, module, sampled, kept):
            live.append(int((kept.coefficients["policy"] != 0).sum()))

    for skip in (True, False):
        seen = []
        original = CausalLM.score

        def score(model, tokens, keep, *args, _seen=seen, _original=original, **kwargs):
            _seen.append(len(tokens))
            return _original(model, tokens, keep, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(CausalLM, "score", score)
            if not skip:
                patch.setattr(base, "rows_that_matter", lambda rows, components: torch.ones(len(rows), dtype=torch.bool))
            data = tiny_data(task=SomeDead(digits=1), prompts_per_step=6)
            rows[skip] = fit(tiny_grpo(tokens_per_microbatch=1), data, Live()), sum(seen)
    (skipped, few), (computed, many) = rows[True], rows[False]
    assert 0 < few == live[0] < many == 6 * 3
    assert all(torch.equal(skipped.gradients[0][name], computed.gradients[0][name]) for name in computed.gradients[0])
    assert skipped.updates[0]["loss"] == computed.updates[0]["loss"]


class SomeDead(EvenDigits):
    """Every second prompt is answered right by anything: its rows have credit 0."""

    def judge(self, prompt, completion):
        verdict = super().judge(prompt, completion)
        return replace(verdict, reward=1.0) if sum(map(int, prompt.text[:3:2])) % 2 else verdict
