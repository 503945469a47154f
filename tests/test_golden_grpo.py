"""Group advantages, policy term and KL against an independent float64 oracle; kappa by summing over all groups."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import pytest
import torch

from fulgurite.credit.group import group_advantages
from fulgurite.losses.aggregate import denominator, weighted_sum
from fulgurite.losses.compose import Component, compose
from fulgurite.losses.kl import reverse_kl, token_kl
from fulgurite.losses.policy import policy_loss
from fulgurite.losses.ratio import log_ratio
from golden_vectors import DTYPES, cases, close, document, exact, name_of, tensors

pytestmark = pytest.mark.golden

MODES = {
    "none": {"scale": "none", "baseline": "mean"},
    "pop_std": {"scale": "pop_std", "baseline": "mean"},
    "sample_std": {"scale": "sample_std", "baseline": "mean"},
    "leave_one_out": {"scale": "none", "baseline": "leave_one_out"},
}
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _loss(total, mode, divisor, weight=1.0):
    return compose({"only": total}, {"only": Component(weight, mode)}, {"only": divisor.item()})


@both_dtypes
@pytest.mark.parametrize("case", cases("advantages"), ids=name_of)
def test_golden_advantages(case, dtype):
    if dtype == torch.float32 and case["name"].startswith(("tiny_spread", "offset")):
        pytest.skip("float32 cannot hold these rewards")
    given = tensors(case["inputs"], dtype)
    for mode, settings in MODES.items():
        want = case["expected"][mode]
        got = group_advantages(
            given["rewards"],
            given["group_index"],
            **settings,
            adv_eps=given["adv_eps"],
            tie_margin=given["tie_margin"],
        )
        assert got.dtype == dtype
        close(got, want, dtype, mode)
        dead = torch.tensor(case["expected"]["none"]) == 0
        for group in given["group_index"].unique():
            rows = given["group_index"] == group
            if dead[rows].all():
                exact(got[rows], [0.0] * int(rows.sum()), f"{mode} of the dead group {group}")


@both_dtypes
@pytest.mark.parametrize("case", cases("policy_loss"), ids=name_of)
def test_golden_policy_loss(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    logp, keep, mode = given["logp"].requires_grad_(), given["mask"], given["aggregation"]
    total, metrics = policy_loss(
        logp,
        given["logp_old"],
        keep,
        given["advantages"],
        eps_low=given["eps_lo"],
        eps_high=given["eps_hi"],
        aggregation=mode,
        dual_clip=given["dual_clip_c"],
        ratio_level=given["ratio_level"],
        surrogate=given["surrogate"],
        weight=given["weight"],
    )
    divisor = denominator(keep, mode, given["const_len"])
    loss = _loss(total, mode, divisor)
    kl = torch.zeros((), dtype=dtype)
    if given["kl_beta"]:
        kl_sum = weighted_sum(token_kl(logp, given["logp_ref"], "k3", keep), keep, mode)
        loss = loss + _loss(kl_sum, mode, divisor, given["kl_beta"])
        kl = _loss(kl_sum, mode, divisor)
    loss.backward()

    assert loss.dtype == dtype
    close(loss, want["loss"], dtype, "loss")
    close(logp.grad, want["grad"], dtype, "grad")
    exact(logp.grad[~keep], [0.0] * int((~keep).sum()), "grad at masked positions")
    ratio = log_ratio(logp, given["logp_old"], keep, given["ratio_level"]).exp()
    close(ratio, want["ratio"], dtype, "ratio")
    exact(divisor, want["denominator"], "denominator")
    close(kl, want["kl"], dtype, "kl")
    for bound in ("low", "high", "dual"):
        share, kept = metrics[f"clip_fraction_{bound}"]
        exact(kept, int(keep.sum()), "kept tokens")
        close(share.double() / kept.clamp(min=1), want[f"clip_frac_{bound}"], torch.float64, bound)
    close(metrics["ratio"][0], ratio[keep].sum().item(), dtype, "ratio sum")


@both_dtypes
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("case", cases("kl", "token_cases"), ids=name_of)
def test_golden_token_kl(case, estimator, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"][estimator]
    logp, keep, mode = given["logp"].requires_grad_(), given["mask"], given["aggregation"]
    value = token_kl(logp, given["logp_ref"], estimator, keep)
    loss = _loss(weighted_sum(value, keep, mode), mode, denominator(keep, mode, given.get("const_len")))
    loss.backward()
    close(value, want["value"], dtype, "value")
    close(loss, want["loss"], dtype, "loss")
    close(logp.grad, want["grad"], dtype, "grad")


@both_dtypes
@pytest.mark.parametrize("case", cases("kl", "vocab_cases", kind="reverse_kl"), ids=name_of)
def test_golden_reverse_kl(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    student, keep, mode = given["student_logits"].requires_grad_(), given["mask"], given["aggregation"]
    value = reverse_kl(student, given["teacher_logits"], given["temperature"])
    loss = _loss(weighted_sum(value, keep, mode), mode, denominator(keep, mode, given.get("const_len")))
    loss.backward()
    close(torch.where(keep, value, 0), want["value"], dtype, "value")
    close(loss, want["loss"], dtype, "loss")
    close(student.grad, want["grad_student_logits"], dtype, "grad_student_logits")


@both_dtypes
@pytest.mark.parametrize("case", cases("kl", "expectation_cases"), ids=name_of)
def test_golden_kl_expectations_under_the_student(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    student, teacher = given["student_logits"].requires_grad_(), given["teacher_logits"]
    divergence = reverse_kl(student, teacher)
    close(divergence, want["reverse_kl"], dtype, "reverse_kl")
    (gradient,) = torch.autograd.grad(divergence, student)
    close(gradient, want["grad_reverse_kl"], dtype, "grad_reverse_kl")
    for estimator in ("k1", "k2", "k3"):
        logp = student.log_softmax(-1)
        mean = (logp.detach().exp() * token_kl(logp, teacher.log_softmax(-1), estimator)).sum()
        close(mean, want["estimators"][estimator]["mean_value"], dtype, f"{estimator} mean_value")
        (gradient,) = torch.autograd.grad(mean, student)
        close(gradient, want["estimators"][estimator]["mean_gradient"], dtype, f"{estimator} mean_gradient")


def _expected_factor(rewards, group_index, successes, p, mode):
    """Mean of advantage times score per group as a multiple of grad p: grad p = p s+ and s- = -p/(1-p) s+."""
    advantages = group_advantages(rewards, group_index, **MODES[mode], adv_eps=0.0)
    per_score = advantages * (rewards - p) / (p * (1 - p))
    size = len(rewards) // len(successes)
    return per_score.view(-1, size).mean(1), advantages


@both_dtypes
@pytest.mark.parametrize("row", document("kappa").get("table", []), ids=lambda row: f"G{row['G']}-p{row['p']}")
def test_golden_kappa_table(row, dtype):
    size, p = row["G"], row["p"]
    successes = torch.arange(size + 1)
    rewards = (torch.arange(size) < successes[:, None]).to(dtype).flatten()
    group_index = successes.repeat_interleave(size)
    chance = torch.tensor([comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)], dtype=dtype)
    columns = {
        "kappa_pop_std": "pop_std",
        "kappa_sample_std": "sample_std",
        "factor_mean_baseline": "none",
        "factor_leave_one_out": "leave_one_out",
    }
    for column, mode in columns.items():
        factor, advantages = _expected_factor(rewards, group_index, successes, p, mode)
        close((chance * factor).sum(), row[column], dtype, column)
        informative = (advantages != 0).view(-1, size).any(1)
        close(chance[informative].sum(), row["informative_group_rate"], dtype, f"informative groups, {mode}")

    share = Fraction(p).limit_denominator(100_000)
    if float(share) == p:  # a group of exactly the share p has the factor of the infinitely large group
        size = share.denominator
        rewards = (torch.arange(size) < share.numerator).to(dtype)
        factor, _ = _expected_factor(rewards, torch.zeros(size, dtype=torch.int64), [share], p, "pop_std")
        close(factor[0], row["kappa_limit_infinite_group"], dtype, "kappa_limit_infinite_group")


@both_dtypes
@pytest.mark.parametrize("case", cases("kappa", "enumerated"), ids=name_of)
def test_golden_kappa_enumerated_over_all_groups(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    logits, reward = given["logits"].requires_grad_(), given["reward_per_action"]
    size = given["group_size"]
    logp = logits.log_softmax(-1)
    mean_reward = (logp.exp() * reward).sum()
    (grad_p,) = torch.autograd.grad(mean_reward, logits, retain_graph=True)
    close(mean_reward, want["p"], dtype, "p")
    close(grad_p, want["grad_p"], dtype, "grad_p")

    actions = torch.tensor(list(product(range(len(reward)), repeat=size)))
    chance = logp.detach()[actions].sum(1).exp()
    group_index = torch.arange(len(actions)).repeat_interleave(size)
    for mode, gradient in want["mean_gradient"].items():
        advantages = group_advantages(reward[actions].flatten(), group_index, **MODES[mode], adv_eps=given["adv_eps"]).view_as(
            actions
        )
        expected = (chance * (advantages * logp[actions]).mean(1)).sum()
        (got,) = torch.autograd.grad(expected, logits, retain_graph=True)
        close(got, gradient, dtype, f"mean_gradient {mode}")
