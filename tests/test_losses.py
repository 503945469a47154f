"""The policy term, the aggregations and the divergences in closed form, regime by regime."""

from __future__ import annotations

from math import exp, log
from typing import get_args

import pytest
import torch

from fulgurite.losses.aggregate import Aggregation, denominator, weighted_sum
from fulgurite.losses.kl import reverse_kl, token_kl
from fulgurite.losses.policy import policy_loss
from fulgurite.losses.ratio import log_ratio
from fulgurite.types import ConfigError

MODES = get_args(Aggregation)
LEVELS = ("token", "sequence", "sequence_product")
SURROGATES = ("clip", "cispo")
WINDOW = {"eps_low": 0.2, "eps_high": 0.28}


def assert_close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=1e-12, atol=1e-13)


def one_token(ratio, advantage, **settings):
    """Loss and d loss / d logp of a single token whose ratio is given, and the bounds that acted."""
    old, keep = torch.full((1, 1), -1.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    logp = (old + log(ratio)).requires_grad_()
    advantage = torch.tensor([advantage], dtype=torch.float64)
    total, metrics = policy_loss(logp, old, keep, advantage, **{**WINDOW, "aggregation": "token_mean", **settings})
    total.backward()
    acted = [name.removeprefix("clip_fraction_") for name, (n, _) in metrics.items() if "clip" in name and n > 0]
    return total, logp.grad[0, 0], acted


def batch(rows=8, width=5):
    """Rows of every length from `width` down to none, ratios on both sides of the window."""
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(rows, width, generator=generator, dtype=torch.float64)
    logp = old + 0.5 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    keep = torch.arange(width) < (torch.arange(rows) % (width + 1))[:, None]
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    weight = torch.rand(rows, width, generator=generator, dtype=torch.float64)
    return logp, old, keep, advantages, weight


@pytest.mark.parametrize(
    ("regime", "ratio", "advantage", "loss", "gradient", "acted"),
    [
        ("inside_positive", 1.1, 2.0, -2.2, -2.2, []),
        ("inside_negative", 0.9, -2.0, 1.8, 1.8, []),
        ("clipped_high", 1.5, 1.0, -1.28, 0.0, ["high"]),
        ("clipped_low", 0.5, -1.0, 0.8, 0.0, ["low"]),
        ("pessimistic_high", 1.5, -1.0, 1.5, 1.5, []),
        ("pessimistic_low", 0.5, 1.0, -0.5, -0.5, []),
        ("advantage_zero", 1.5, 0.0, 0.0, 0.0, []),
    ],
)
def test_clip_regime(regime, ratio, advantage, loss, gradient, acted):
    got, grad, bounds = one_token(ratio, advantage)
    assert_close(got, loss)
    assert_close(grad, gradient)
    assert bounds == acted


def test_clip_higher_moves_the_upper_bound_only():
    assert_close(one_token(1.5, 1.0, eps_high=0.2)[0], -1.2)
    assert_close(one_token(0.5, -1.0, eps_high=0.2)[0], one_token(0.5, -1.0)[0].item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "acted"),
    [(5.0, -2.0, 6.0, 0.0, ["dual"]), (2.0, -2.0, 4.0, 4.0, []), (5.0, 2.0, -2.56, 0.0, ["high"])],
    ids=["beyond_the_bound", "below_the_bound", "positive_advantage_is_not_bounded"],
)
def test_dual_clip_bounds_the_loss_of_negative_advantages(ratio, advantage, loss, gradient, acted):
    got, grad, bounds = one_token(ratio, advantage, dual_clip=3.0)
    assert_close(got, loss)
    assert_close(grad, gradient)
    assert bounds == acted


@pytest.mark.parametrize(
    ("ratio", "coefficient", "acted"),
    [(1.1, 1.1, []), (1.5, 1.28, ["high"]), (0.5, 0.8, ["low"])],
    ids=["inside", "above", "below"],
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_keeps_a_gradient_where_the_clip_has_none(ratio, coefficient, acted, advantage):
    _, grad, bounds = one_token(ratio, advantage, surrogate="cispo")
    assert_close(grad, -coefficient * advantage)
    assert bounds == acted


@pytest.mark.parametrize("difference", [30.0, -30.0, float("inf"), float("-inf")])
def test_log_ratio_beyond_the_clamp_has_its_value_and_no_gradient(difference):
    logp = torch.tensor([[difference]], dtype=torch.float64, requires_grad=True)
    got = log_ratio(logp, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool))
    got.sum().backward()
    assert got.item() == (20.0 if difference > 0 else -20.0)
    assert logp.grad.item() == 0.0


def test_sequence_ratio_is_the_geometric_mean_and_its_product_level_the_product_of_kept_tokens():
    logp = torch.tensor([[0.3, -0.1, 9.0], [0.2, 9.0, 9.0]], dtype=torch.float64)
    keep = torch.tensor([[True, True, False], [True, False, False]])
    old = torch.zeros_like(logp)
    assert_close(log_ratio(logp, old, keep, "sequence"), [[0.1, 0.1, 0.0], [0.2, 0.0, 0.0]])
    assert_close(log_ratio(logp, old, keep, "sequence_product"), [[0.2, 0.2, 0.0], [0.2, 0.0, 0.0]])


@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_gradient_is_minus_advantage_over_length_whatever_the_level(level):
    logp, _, keep, advantages, _ = batch()
    logp.requires_grad_()
    total, metrics = policy_loss(
        logp, logp.detach(), keep, advantages, **WINDOW, aggregation="seq_mean_token_sum", ratio_level=level
    )
    total.backward()
    size = keep.sum(1, keepdim=True) if level == "sequence_product" else torch.ones(8, 1, dtype=torch.float64)
    assert_close(logp.grad, torch.where(keep, -advantages[:, None] * size, 0.0))
    assert metrics["ratio"][0] == metrics["ratio"][1] == keep.sum()


@pytest.mark.parametrize("garbage", [1e4, -1e4, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_masked_positions_are_never_read(mode, level, surrogate, garbage):
    logp, old, keep, advantages, weight = batch()
    advantages = advantages[:, None].expand_as(keep)

    def run(fill):
        mine, theirs, gains, weights = (torch.where(keep, x, fill) for x in (logp, old, advantages, weight))
        mine = mine.requires_grad_()
        total, metrics = policy_loss(
            mine, theirs, keep, gains,
            **WINDOW, aggregation=mode, ratio_level=level, surrogate=surrogate, weight=weights,
        )  # fmt: skip
        total = total + sum(weighted_sum(token_kl(mine, theirs, k, keep), keep, mode) for k in ("k1", "k2", "k3"))
        total.backward()
        return [total, mine.grad, *(number for pair in metrics.values() for number in pair)]

    for got, want in zip(run(garbage), run(-1.0), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_kept_is_exactly_zero_with_gradient_zero(mode):
    logp, old, keep, advantages, _ = batch()
    logp.requires_grad_()
    total, metrics = policy_loss(logp, old, torch.zeros_like(keep), advantages, **WINDOW, aggregation=mode)
    total.backward()
    assert total == 0
    assert torch.equal(logp.grad, torch.zeros_like(logp))
    assert all(number == 0 for pair in metrics.values() for number in pair)


@pytest.mark.parametrize("parts", [[8], [4, 4], [2, 2, 2, 2], [1] * 8, [1, 5, 2]], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_add_up_to_the_update(mode, level, surrogate, parts):
    logp, old, keep, advantages, weight = batch()

    def run(sizes):
        mine = logp.clone().requires_grad_()
        sums, counts, divisors = [], [], []
        for rows in torch.arange(8).split(sizes):
            total, metrics = policy_loss(
                mine[rows], old[rows], keep[rows], advantages[rows],
                **WINDOW, aggregation=mode, ratio_level=level, surrogate=surrogate, weight=weight[rows],
            )  # fmt: skip
            sums.append(total)
            counts.append([number.double() for pair in metrics.values() for number in pair])
            divisors.append(denominator(keep[rows], mode, const_len=6))
        divisor = torch.stack(divisors).sum()
        (torch.stack(sums).sum() / divisor).backward()
        return torch.stack(sums).sum(), mine.grad, torch.tensor(counts, dtype=torch.float64).sum(0), divisor

    for got, want in zip(run(parts), run([8]), strict=True):
        assert_close(got, want)


def test_denominators_count_rows_without_a_kept_token():
    keep = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    got = {mode: denominator(keep, mode, const_len=8).item() for mode in MODES}
    assert got == {
        "seq_mean_token_mean": 3,
        "token_mean": 4,
        "seq_mean_token_sum_const": 24,
        "seq_mean_token_sum": 3,
    }


def test_only_seq_mean_token_mean_divides_a_row_by_its_length():
    keep = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    values = torch.arange(9, dtype=torch.float64).view(3, 3)
    assert weighted_sum(values, keep, "seq_mean_token_mean") == 1.0 + 3.0
    assert {weighted_sum(values, keep, mode).item() for mode in MODES if mode != "seq_mean_token_mean"} == {6.0}


@pytest.mark.parametrize("mode", MODES)
def test_masked_values_stay_out_of_the_sum_and_its_gradient(mode):
    values = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]], requires_grad=True)
    total = weighted_sum(values, torch.eye(2, dtype=torch.bool), mode)
    total.backward()
    assert total == 3.0
    assert torch.equal(values.grad, torch.eye(2))


def test_weight_of_a_row_scales_its_loss():
    logp, old, keep, advantages, weight = batch()
    settings = {**WINDOW, "aggregation": "token_mean"}
    weighted, _ = policy_loss(logp, old, keep, advantages, **settings, weight=weight[:, 0])
    scaled, _ = policy_loss(logp, old, keep, advantages * weight[:, 0], **settings)
    assert_close(weighted, scaled)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_only_the_trained_policy_gets_a_gradient(surrogate):
    tensors = [x.requires_grad_() if x.is_floating_point() else x for x in batch()]
    logp, old, keep, advantages, weight = tensors
    settings = {**WINDOW, "aggregation": "token_mean", "surrogate": surrogate}
    policy_loss(logp, old, keep, advantages, **settings, weight=weight)[0].backward()
    token_kl(logp, old, "k3", keep).sum().backward()
    assert logp.grad is not None
    assert old.grad is None and advantages.grad is None and weight.grad is None


def test_bfloat16_inputs_are_summed_in_float32():
    values = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    total = weighted_sum(values, torch.ones_like(values, dtype=torch.bool), "token_mean")
    assert total.dtype == torch.float32 and total == 4096
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    assert reverse_kl(logits, logits.flip(-1)).dtype == torch.float32


@pytest.mark.parametrize("difference", [1e-6, 0.5, -0.5, 19.0])
def test_k3_is_its_closed_form_inside_the_clamp(difference):
    logp = torch.tensor([[difference]], dtype=torch.float64, requires_grad=True)
    value = token_kl(logp, torch.zeros(1, 1, dtype=torch.float64), "k3")
    value.sum().backward()
    assert_close(value, [[exp(-difference) - 1 + difference]])
    assert_close(logp.grad, [[1 - exp(-difference)]])


@pytest.mark.parametrize("difference", [-25.0, 25.0])
def test_k3_beyond_the_clamp_pushes_no_token_the_wrong_way(difference):
    logp = torch.tensor([[difference]], dtype=torch.float64, requires_grad=True)
    value = token_kl(logp, torch.zeros(1, 1, dtype=torch.float64), "k3")
    value.sum().backward()
    limited = 20.0 if difference > 0 else -20.0
    assert_close(value, [[exp(-limited) - 1 + limited]])
    assert logp.grad.item() == 0.0


def test_k1_and_k2_are_not_limited():
    logp = torch.tensor([[-25.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.zeros(1, 1, dtype=torch.float64)
    assert token_kl(logp, ref, "k1").item() == -25.0
    value = token_kl(logp, ref, "k2")
    value.sum().backward()
    assert value.item() == 312.5 and logp.grad.item() == -25.0


def test_reverse_kl_of_two_words_is_the_bernoulli_divergence():
    p, q = 0.9, 0.3
    student = torch.tensor([log(p), log(1 - p)], dtype=torch.float64)
    teacher = torch.tensor([log(q), log(1 - q)], dtype=torch.float64)
    assert_close(reverse_kl(student, teacher), p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)))
    assert_close(reverse_kl(2 * student, 2 * teacher, temperature=2.0), 4 * reverse_kl(student, teacher).item())


@pytest.mark.parametrize("padded", ["student", "teacher"])
def test_reverse_kl_cuts_a_padded_vocabulary_before_the_softmax(padded):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    words = {"student": student, "teacher": teacher}
    words[padded] = torch.cat([words[padded], torch.full((2, 3, 2), 30.0, dtype=torch.float64)], dim=-1)
    logits = words["student"].requires_grad_()
    value = reverse_kl(logits, words["teacher"])
    assert torch.equal(value, reverse_kl(student, teacher))
    value.sum().backward()
    assert torch.equal(logits.grad[..., 5:], torch.zeros_like(logits[..., 5:]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"surrogate": "ppo"}, "the surrogate is 'ppo'; expected one of clip, cispo"),
        ({"ratio_level": "row"}, "the ratio level is 'row'; expected one of token, sequence, sequence_product"),
        ({"aggregation": "mean"}, "the aggregation is 'mean'; expected one of seq_mean_token_mean"),
        ({"eps_low": -0.1}, "eps_low is -0.1 and eps_high 0.28; expected 0 or more"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0; expected a number above 1"),
        ({"dual_clip": 3.0, "surrogate": "cispo"}, "dual_clip is 3.0 with the surrogate cispo"),
    ],
)
def test_policy_settings_that_cannot_work_are_refused(settings, told):
    logp, old, keep, advantages, _ = batch()
    with pytest.raises(ConfigError, match=told):
        policy_loss(logp, old, keep, advantages, **{**WINDOW, "aggregation": "token_mean", **settings})


@pytest.mark.parametrize("const_len", [None, 0])
def test_constant_length_has_to_be_given(const_len):
    with pytest.raises(ConfigError, match=f"const_len is {const_len}; .* expects at least 1"):
        denominator(torch.ones(1, 1, dtype=torch.bool), "seq_mean_token_sum_const", const_len)


def test_divergence_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="the KL estimator is 'k4'; expected one of k1, k2, k3"):
        token_kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")
    with pytest.raises(ConfigError, match="the temperature of the divergence is 0"):
        reverse_kl(torch.zeros(2), torch.zeros(2), temperature=0)
