"""2-GRPO (arXiv 2510.00977): pairs, their exact expectations through the module, ties, and the rate of more prompts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import TabularGRPO, fit, single_tokens

from fulgurite.callbacks.round_metrics import RoundMetrics, round_metrics, round_sums
from fulgurite.credit.group import Advantage, group_advantages
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.types import ConfigError
from records import RecordingLogger, make_round
from tiny import EvenDigits, tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
LOGITS = [0.3, -0.9, 0.1]
PAIR = torch.tensor([0, 0])
EXACT = Advantage(scale="pop_std", adv_eps=0.0)


def gradient(actions, credit, settings=(), **columns):
    policy = TabularGRPO(LOGITS, optimizer=STILL, **dict(settings))
    recorder = fit(policy, [single_tokens(actions, credit, **columns)])
    return recorder.gradients[0]["policy.logits"], recorder.updates[0]


# Credit


@pytest.mark.parametrize(
    ("rewards", "credit"),
    [
        ([1.0, 0.0], [1.0, -1.0]),
        ([0.0, 1.0], [-1.0, 1.0]),
        ([0.8, 0.6], [1.0, -1.0]),
        ([1.0, 1.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_the_better_of_a_pair_gets_one_the_other_minus_one_and_a_tie_exactly_nothing(rewards, credit):
    got = Advantage(scale="pop_std")(torch.tensor(rewards), PAIR)
    assert got.tolist() == pytest.approx(credit, abs=1e-4) and (credit[0] or got.tolist() == [0.0, 0.0])
    assert EXACT(torch.tensor(rewards, dtype=torch.float64), PAIR).tolist() == pytest.approx(credit, abs=1e-12)


def test_for_rewards_of_zero_and_one_it_is_leave_one_out_and_twice_the_centred_reward():
    rewards = torch.tensor(list(product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    index = torch.arange(4).repeat_interleave(2)
    pairs = EXACT(rewards.flatten(), index)
    assert torch.equal(pairs, group_advantages(rewards.flatten(), index, "none", "leave_one_out"))
    assert torch.equal(pairs, 2 * group_advantages(rewards.flatten(), index, "none", "mean"))
    assert torch.equal(pairs.view(4, 2), rewards - rewards.flip(1))


def test_rewards_nearer_than_the_margin_tie():
    margin = Advantage(scale="pop_std", tie_margin=0.1)
    assert margin(torch.tensor([0.3, 0.2]), PAIR).tolist() == [0.0, 0.0]
    assert margin(torch.tensor([0.35, 0.2]), PAIR).tolist() == pytest.approx([1.0, -1.0], abs=1e-4)


def test_the_mean_credit_of_a_reward_is_its_distance_from_the_success_rate():
    p = 0.3
    chance = {1.0: p, 0.0: 1 - p}
    for x in (0.0, 1.0):
        mean = sum(chance[y] * float(EXACT(torch.tensor([x, y], dtype=torch.float64), PAIR)[0]) for y in (0.0, 1.0))
        assert mean == pytest.approx(x - p, abs=1e-12)


# The gradient, through the module


def test_the_mean_gradient_over_all_pairs_is_that_of_the_success_rate():
    p = torch.tensor(LOGITS, dtype=torch.float64).softmax(-1)
    pairs = torch.tensor(list(product(range(3), repeat=2)))
    credit = EXACT((pairs.flatten() == 1).double(), torch.arange(9).repeat_interleave(2))
    chance = p[pairs].prod(1)  # the loss is linear in the credit: a pair's chance may stand in it; it divides by the rows
    got, _ = gradient(pairs.flatten(), (chance * 9).repeat_interleave(2) * credit)
    torch.testing.assert_close(-got, p[1] * (torch.eye(3)[1] - p), rtol=1e-12, atol=1e-14)


def test_a_pair_has_the_gradient_of_dpo_at_zero_margin():
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    margin = (logp[1] - logp[2]) - (logp[1] - logp[2]).detach()
    (-torch.nn.functional.logsigmoid(margin)).backward()
    got, _ = gradient([1, 2], [1.0, -1.0])
    torch.testing.assert_close(got, logits.grad, rtol=1e-12, atol=1e-14)


def test_the_order_within_a_pair_does_not_matter():
    one, first = gradient([1, 2], [1.0, -1.0])
    other, second = gradient([2, 1], [-1.0, 1.0])
    assert torch.equal(one, other) and first["loss"] == second["loss"]


@pytest.mark.parametrize(
    ("ratio", "credit", "loss", "moves"),
    [(1.5, 1.0, -1.28, False), (0.5, -1.0, 0.8, False), (1.5, -1.0, 1.5, True), (0.5, 1.0, -0.5, True)],
)
def test_the_clip_acts_above_for_the_better_and_below_for_the_worse(ratio, credit, loss, moves):
    logp = torch.tensor(LOGITS, dtype=torch.float64).log_softmax(-1)[1]
    old = logp - torch.tensor(ratio, dtype=torch.float64).log()
    got, update = gradient([1], [credit], old=[float(old)], settings={"eps_low": 0.2, "eps_high": 0.28})
    assert update["loss"] == pytest.approx(loss, rel=1e-12) and bool((got != 0).any()) is moves


# In a run


class Seen(Callback):
    def __init__(self):
        self.rounds = []

    def on_round(self, trainer, module, sampled, kept):
        self.rounds.append((sampled, kept))


class Coin(EvenDigits):
    """Right or wrong by the first character: many pairs tie."""

    def judge(self, prompt, completion):
        verdict = super().judge(prompt, completion)
        right = float(completion.text[:1] in "02468=" and bool(completion.text))
        return type(verdict)("correct" if right else "wrong", {"even": right}, right)


def test_ties_are_sampled_again_until_an_update_has_its_pairs_and_their_share_is_logged():
    watch, logger = Seen(), RecordingLogger()
    data = tiny_data(task=Coin(digits=1), completions_per_prompt=2, zero_variance="drop", fill_to=8, max_fill_rounds=30)
    fit(tiny_grpo(), data, watch, RoundMetrics(), max_epochs=2, logger=logger)
    shares = [share for _, share in logger.series("round/informative_pair_frac")]
    for (sampled, kept), share in zip(watch.rounds, shares, strict=True):
        live = [len(set(sampled.rewards[sampled.group_index == g].tolist())) == 2 for g in range(len(sampled.prompts))]
        assert len(kept) == 8 and share == pytest.approx(sum(live) / len(live)) and 0 < share < 1
        assert sorted(kept.coefficients["policy"].tolist()) == pytest.approx([-1.0] * 4 + [1.0] * 4, abs=1e-4)


def test_a_run_of_ties_moves_no_weight():
    class Tie(EvenDigits):
        def judge(self, prompt, completion):
            verdict = super().judge(prompt, completion)
            return type(verdict)("correct", {"even": 1.0}, 1.0)

    module = tiny_grpo()
    recorder = fit(module, tiny_data(task=Tie(digits=1), completions_per_prompt=2), max_epochs=2)
    assert recorder.gradients == [] and int(module.empty_minibatches) == 2


def test_pairs_by_the_margin_are_not_informative_and_other_sizes_have_no_such_share():
    held = make_round([[0.3, 0.2], [1.0, 0.0]])
    held = held.with_coefficients(policy=Advantage(tie_margin=0.1)(held.rewards, held.group_index))
    metrics = round_metrics(round_sums(held, held))
    assert metrics["round/informative_pair_frac"] == 0.5 and metrics["round/mixed_groups"] == 1.0
    wide = make_round([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], coefficients={"policy": [1.0] * 6})
    assert "round/informative_pair_frac" not in round_metrics(round_sums(wide, wide))


@pytest.mark.parametrize(("questions", "completions"), [(16, 2), (4, 8)])
def test_as_many_rows_whatever_the_size_of_a_group(questions, completions):
    watch = Seen()
    data = tiny_data(prompts_per_step=questions, completions_per_prompt=completions)
    fit(tiny_grpo(), data, watch)
    assert len(watch.rounds[0][1].minibatch(0)) == 32


# The learning rate


def test_the_rate_grows_with_the_prompts_of_a_step():
    rates = {}
    for prompts in (2, 4, 8):
        spec = OptimizerSpec(learning_rate=1e-3, for_prompts_per_step=4, warmup_updates=0)
        recorder = fit(tiny_grpo(optimizer=spec), tiny_data(prompts_per_step=prompts))
        rates[prompts] = recorder.updates[0]["lr/policy"]
    assert rates == {2: pytest.approx(5e-4), 4: pytest.approx(1e-3), 8: pytest.approx(2e-3)}
    assert OptimizerSpec(learning_rate=0.7).peak_rate(3) == 0.7
    assert OptimizerSpec(learning_rate=1e-6, for_prompts_per_step=32).peak_rate(256) == pytest.approx(8e-6, rel=1e-12)
    with pytest.raises(ConfigError, match="for_prompts_per_step is 0; expected at least 1"):
        OptimizerSpec(for_prompts_per_step=0)
