"""Group advantages in closed form, and which groups are worth a forward pass."""

from __future__ import annotations

import pytest
import torch

from fulgurite.credit.group import Advantage, group_advantages
from fulgurite.selection.zero_variance import live_rows
from fulgurite.types import ConfigError

MODES = [("none", "mean"), ("pop_std", "mean"), ("sample_std", "mean"), ("none", "leave_one_out")]
modes = pytest.mark.parametrize(("scale", "baseline"), MODES)


def advantages(rewards, scale="none", baseline="mean", groups=None, **settings):
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    groups = torch.zeros(len(rewards), dtype=torch.int64) if groups is None else torch.tensor(groups)
    return group_advantages(rewards, groups, scale, baseline, **settings)


def assert_close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("scale", "baseline", "size"),
    [("none", "mean", 0.5), ("pop_std", "mean", 1.0), ("sample_std", "mean", 0.5**0.5), ("none", "leave_one_out", 1.0)],
)
def test_pair_with_one_success_is_symmetric(scale, baseline, size):
    assert_close(advantages([1.0, 0.0], scale, baseline, adv_eps=0.0), [size, -size])


def test_pair_scaled_by_std_forgets_how_far_apart_the_rewards_are():
    assert_close(advantages([0.3, 0.7], "pop_std", adv_eps=0.0), [-1.0, 1.0])


def test_rare_success_gets_the_closed_form_of_binary_rewards():
    share = 1 / 8
    success, failure = ((1 - share) / share) ** 0.5, -((share / (1 - share)) ** 0.5)
    assert_close(advantages([0, 0, 0, 1, 0, 0, 0, 0], "pop_std", adv_eps=0.0), [failure] * 3 + [success] + [failure] * 4)


def test_eps_is_added_to_the_standard_deviation():
    assert_close(advantages([1.0, 0.0], "pop_std", adv_eps=0.5), [0.5, -0.5])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    assert_close(advantages([3.0, 1.0, -1.0], "none", "leave_one_out"), [3.0, 0.0, -3.0])


@modes
@pytest.mark.parametrize("rewards", [[0.0] * 4, [0.1] * 3, [-1 / 3] * 7, [0.7]], ids=["zero", "tenth", "third", "single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_without_spread_is_exactly_zero(rewards, scale, baseline, dtype):
    got = group_advantages(
        torch.tensor(rewards, dtype=dtype), torch.zeros(len(rewards), dtype=torch.int64), scale, baseline, adv_eps=0.0
    )
    assert got.dtype == dtype
    assert torch.equal(got, torch.zeros(len(rewards), dtype=dtype))


@modes
def test_dead_group_beside_a_live_one_leaves_it_alone(scale, baseline):
    together = advantages([1.0, 0.0, 0.1, 0.1, 0.1], scale, baseline, groups=[0, 0, 1, 1, 1])
    assert torch.equal(together[:2], advantages([1.0, 0.0], scale, baseline))
    assert torch.equal(together[2:], torch.zeros(3, dtype=torch.float64))


@modes
def test_spread_equal_to_the_tie_margin_is_a_tie_and_a_wider_one_is_not(scale, baseline):
    rewards, groups = [0.5, 0.25, 0.5, 0.0], [0, 0, 1, 1]
    got = advantages(rewards, scale, baseline, groups=groups, tie_margin=0.25)
    assert torch.equal(got[:2], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(got[2:], advantages(rewards[2:], scale, baseline))


@modes
def test_groups_of_any_number_size_and_order_are_those_taken_one_by_one(scale, baseline):
    generator = torch.Generator().manual_seed(5)
    groups = torch.tensor([7, -3, 7, 10**12, -3, 7, 10**12, 0, 10**12, 10**12])
    rewards = torch.rand(len(groups), generator=generator, dtype=torch.float64)
    got = group_advantages(rewards, groups, scale, baseline)
    for group in groups.unique():
        rows = groups == group
        assert_close(got[rows], advantages(rewards[rows], scale, baseline))


@modes
def test_a_reward_that_is_no_number_spoils_its_own_group_only(scale, baseline):
    got = advantages([float("nan"), 1.0, 1.0, 0.0], scale, baseline, groups=[0, 0, 1, 1])
    assert got[:2].isnan().all()
    assert torch.equal(got[2:], advantages([1.0, 0.0], scale, baseline))


def test_no_rows_give_no_advantages():
    assert advantages([], "pop_std", groups=torch.zeros(0, dtype=torch.int64).tolist()).tolist() == []


@modes
def test_float32_rewards_far_from_zero_keep_their_digits(scale, baseline):
    rewards = 1000 + torch.rand(7, generator=torch.Generator().manual_seed(2))
    got = group_advantages(rewards, torch.zeros(7, dtype=torch.int64), scale, baseline)
    assert torch.equal(got, advantages(rewards, scale, baseline).float())


def test_advantages_carry_no_gradient():
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    assert not group_advantages(rewards, torch.zeros(2, dtype=torch.int64), "pop_std", "mean").requires_grad


def test_settings_object_computes_what_the_function_does():
    rewards, groups = torch.tensor([1.0, 0.0, 0.5, 0.25]), torch.tensor([0, 0, 0, 0])
    assert torch.equal(Advantage()(rewards, groups), group_advantages(rewards, groups, "pop_std", "mean"))
    settings = Advantage(scale="none", baseline="leave_one_out", tie_margin=2.0)
    assert torch.equal(settings(rewards, groups), torch.zeros(4))
    assert Advantage(scale="sample_std", adv_eps=0.25)(rewards, groups).tolist() == pytest.approx(
        ((rewards - rewards.mean()) / (rewards.std() + 0.25)).tolist(), rel=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scale": "std"}, "advantage.scale is 'std'; expected one of none, pop_std, sample_std"),
        ({"baseline": "rloo"}, "advantage.baseline is 'rloo'; expected one of mean, leave_one_out"),
        ({"baseline": "leave_one_out"}, "set advantage.scale to none"),
        ({"baseline": "leave_one_out", "scale": "sample_std"}, "set advantage.scale to none"),
        ({"adv_eps": -1.0}, "advantage.adv_eps is -1.0; expected 0 or more"),
        ({"tie_margin": float("nan")}, "advantage.tie_margin is nan; expected 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Advantage(**settings)
    with pytest.raises(ConfigError, match=told):
        group_advantages(torch.zeros(2), torch.zeros(2), **{"scale": "pop_std", "baseline": "mean", **settings})


def test_rewards_and_groups_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"rewards have shape \(3,\) and group_index \(1,\)"):
        group_advantages(torch.zeros(3), torch.zeros(1, dtype=torch.int64), "none", "mean")


def test_live_rows_are_whole_groups_with_a_nonzero_coefficient_in_any_stream():
    groups = torch.tensor([5, 2, 5, 2, 9, 9])
    small = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    large = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -0.5])
    assert live_rows({"small": small, "large": large}, groups).tolist() == [True, False, True, False, True, True]
    assert live_rows({"small": small}, groups).tolist() == [True, False, True, False, False, False]


def test_live_rows_keep_what_is_no_number_for_a_guard_to_find():
    assert live_rows({"policy": torch.tensor([float("nan"), 0.0])}, torch.tensor([1, 0])).tolist() == [True, False]


def test_without_streams_no_row_is_live():
    assert live_rows({}, torch.tensor([0, 1])).tolist() == [False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rewards", "margin"), [([0.2, 0.3], 0.1), ([0.0, 0.1, 0.05], 0.1), ([0.0, 0.3], 0.3)])
def test_rewards_exactly_a_margin_apart_tie_in_every_precision(rewards, margin, dtype):
    rewards = torch.tensor(rewards, dtype=dtype)
    group = torch.zeros(len(rewards), dtype=torch.int64)
    assert group_advantages(rewards, group, "none", "mean", tie_margin=margin).tolist() == [0.0] * len(rewards)
    assert group_advantages(rewards, group, "none", "mean", tie_margin=margin * 0.999).abs().sum() > 0
