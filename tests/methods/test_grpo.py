"""GRPO through its own `training_step` in a real fit: exact expectations on a table, and what an update does and leaves."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import product
from math import comb

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import TabularGRPO, fit, single_tokens, whole_logprobs

from fulgurite.credit.group import Advantage
from fulgurite.losses.kl import reverse_kl
from fulgurite.modules.base import COUNTERS
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.types import ConfigError, Segment, Verdict
from golden_vectors import cases, close, name_of
from tiny import TINY, EvenDigits, tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
CREDITS = {
    "none": Advantage(scale="none", adv_eps=0.0),
    "pop_std": Advantage(scale="pop_std", adv_eps=0.0),
    "sample_std": Advantage(scale="sample_std", adv_eps=0.0),
    "leave_one_out": Advantage(scale="none", baseline="leave_one_out"),
}


class SameReward(EvenDigits):
    def judge(self, prompt, completion):
        return Verdict("correct", {"even": 1.0}, 1.0)


class Seen(Callback):
    """Keeps the (sampled, kept) rounds."""

    def __init__(self):
        self.rounds = []

    def on_round(self, trainer, module, sampled, kept):
        self.rounds.append((sampled, kept))


def moving(rate=0.3, **settings) -> OptimizerSpec:
    return OptimizerSpec(learning_rate=rate, **{"max_grad_norm": 0.0, **settings})


def same_weights(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# The expected gradient


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("kappa", "enumerated"), ids=name_of)
def test_the_mean_gradient_over_all_groups_is_kappa_times_that_of_the_success_rate(case):
    given, want = case["inputs"], case["expected"]
    size, reward = given["group_size"], torch.tensor(given["reward_per_action"], dtype=torch.float64)
    actions = torch.tensor(list(product(range(len(reward)), repeat=size)))
    logp = torch.tensor(given["logits"], dtype=torch.float64).log_softmax(-1)
    chance = logp[actions].sum(1).exp()
    groups = torch.arange(len(actions)).repeat_interleave(size)
    # The loss is linear in the credit on the policy that sampled, so a group's chance may stand in its credit.
    weight = (chance * len(actions)).repeat_interleave(size)
    minibatches = [
        single_tokens(actions.flatten(), weight * credit(reward[actions].flatten(), groups)) for credit in CREDITS.values()
    ]
    recorder = fit(TabularGRPO(given["logits"], optimizer=STILL, tokens_per_microbatch=100), minibatches)
    ascent = {mode: -step["policy.logits"] for mode, step in zip(CREDITS, recorder.gradients, strict=True)}
    for mode, gradient in ascent.items():
        close(gradient, want["mean_gradient"][mode], torch.float64, mode)

    p, slope = want["p"], torch.tensor(want["grad_p"], dtype=torch.float64)
    close(ascent["leave_one_out"], slope.tolist(), torch.float64, "leave-one-out has factor 1")
    close(ascent["none"], ((size - 1) / size * slope).tolist(), torch.float64, "the mean baseline has (G-1)/G")
    if case["binary"]:
        spread = sum(comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k)) for k in range(size + 1))
        kappa = spread / (size * p * (1 - p))
        close(ascent["pop_std"], (kappa * slope).tolist(), torch.float64, "pop_std has kappa")
        assert size != 2 or kappa == pytest.approx(1.0, rel=1e-12)


def test_credits_of_float32_rounds_keep_the_expectation_to_float32():
    """As the rounds carry them: credits rounded to float32 move the mean gradient by their rounding only."""
    reward, logits = torch.tensor([1.0, 0.0, 0.0]), [0.021, -0.229, 0.236]
    logp = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    actions = torch.tensor(list(product(range(3), repeat=4)))
    weight = (logp[actions].sum(1).exp() * len(actions)).repeat_interleave(4)
    credit = CREDITS["leave_one_out"](reward[actions].flatten(), torch.arange(81).repeat_interleave(4))
    assert credit.dtype == torch.float32
    recorder = fit(TabularGRPO(logits, optimizer=STILL), [single_tokens(actions.flatten(), weight * credit)])
    p = logp.exp()
    close(-recorder.gradients[0]["policy.logits"], (p[0] * (torch.eye(3)[0] - p)).tolist(), torch.float32)


def test_the_temperature_of_the_round_divides_the_logits():
    logits, temperature = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64), 2.0
    recorder = fit(TabularGRPO(logits.tolist(), optimizer=STILL), [single_tokens([1], [1.0], temperature)])
    p = (logits / temperature).softmax(-1)
    close(recorder.gradients[0]["policy.logits"], ((p - torch.eye(3)[1]) / temperature).tolist(), torch.float64)
    assert recorder.updates[0]["loss/entropy"] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-12)


# Old log-probabilities and clipping


def test_one_update_a_round_needs_no_old_column_and_has_ratio_one():
    module, data = tiny_grpo(), tiny_data()
    recorder = fit(module, data, max_epochs=2)
    assert module.loss_columns(1) == () and "old" not in data.held.columns
    assert [update["loss/ratio"] for update in recorder.updates] == [1.0, 1.0]


def test_the_old_column_is_the_policy_at_the_start_of_the_round():
    module, data = tiny_grpo(), tiny_data(steps_per_round=2, inner_epochs=2)
    recorder = fit(module, data)
    held, model = data.held, deepcopy(module.trained["policy"])
    sampled = held.segments == int(Segment.SAMPLED)

    def logprobs_after(updates):
        model.load_state_dict({k.removeprefix("policy."): v for k, v in recorder.weights[updates].items()}, strict=False)
        return whole_logprobs(model.hf, held.tokens).detach()

    old = logprobs_after(0)
    close(held.columns["old"][sampled], old[sampled].tolist(), torch.float32)
    assert len(recorder.updates) == 4
    for position, update in enumerate(recorder.updates):
        rows = sampled & (held.step == position % 2)[:, None] & (held.coefficients["policy"] != 0)[:, None]
        ratio = (logprobs_after(position) - old)[rows].exp().mean()
        assert update["loss/ratio"] == pytest.approx(float(ratio), rel=1e-6), position
        assert position == 0 or abs(update["loss/ratio"] - 1) > 1e-4


def test_the_clip_acts_in_the_second_inner_epoch():
    third = math.log(1 / 3)
    minibatch = single_tokens([0, 1], [1.0, -1.0], old=[third, third])
    recorder = fit(TabularGRPO([0.0] * 3, optimizer=moving(0.3), eps_low=0.3, eps_high=0.28), [minibatch] * 2)
    close(recorder.gradients[0]["policy.logits"], [-0.5, 0.5, 0.0], torch.float64)
    # Adam's first step is the rate times the sign of the gradient (up to its epsilon, 1e-8), so the logits are now
    # 0.3, -0.3, 0: the ratio of row 0 is 1.310, above 1.28, and that of row 1 is 0.719, above 0.70: only row 1 is left.
    p = torch.tensor([0.3, -0.3, 0.0], dtype=torch.float64).softmax(-1)
    want = 0.5 * 3 * p[1] * (torch.eye(3)[1] - p)
    close(recorder.gradients[1]["policy.logits"], want.tolist(), torch.float32)
    shares = {name: value for name, value in recorder.updates[1].items() if "clip_fraction" in name}
    assert shares == {"loss/clip_fraction_low": 0.0, "loss/clip_fraction_high": 0.5, "loss/clip_fraction_dual": 0.0}
    assert recorder.updates[1]["loss"] == pytest.approx(float(3 * p[1] - 1.28) / 2, rel=1e-6)


# Groups without a difference


@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
def test_rounds_of_dead_groups_leave_the_weights_alone(zero_variance):
    module = tiny_grpo()
    recorder = fit(module, tiny_data(task=SameReward(digits=1), zero_variance=zero_variance), max_epochs=2)
    assert same_weights(recorder.weights[0], recorder.weights[-1]) and not recorder.gradients
    assert (int(module.updates), int(module.empty_minibatches), int(module.rounds)) == (0, 2, 2)
    assert [update["empty"] for update in recorder.updates] == [1.0, 1.0]


def test_momentum_moves_nothing_in_an_empty_update():
    module = TabularGRPO([0.1, 0.2, 0.3], optimizer=moving(schedule="linear"))
    live, dead = single_tokens([0, 1], [1.0, -1.0]), single_tokens([0, 1], [0.0, 0.0])
    recorder = fit(module, [live, dead, live])
    assert not same_weights(recorder.weights[0], recorder.weights[1])
    assert same_weights(recorder.weights[1], recorder.weights[2])
    assert [update.get("lr/policy") for update in recorder.updates] == pytest.approx([0.3, None, 0.2])
    assert (int(module.updates), int(module.empty_minibatches), module.trainer.global_step) == (2, 1, 2)
    assert int(module.trained_tokens) == 4


def test_dead_groups_are_still_pulled_to_the_reference():
    policy, reference = [0.5, -0.5, 0.0], [0.0, 0.2, 0.4]
    module = TabularGRPO(policy, reference, optimizer=STILL, kl_beta=0.7, kl_estimator="exact")
    recorder = fit(module, [single_tokens([0, 1, 1, 2], [0.0] * 4)])
    assert int(module.updates) == 1
    logits = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    kl = reverse_kl(logits, torch.tensor(reference, dtype=torch.float64))
    (0.7 * kl).backward()
    close(recorder.gradients[0]["policy.logits"], logits.grad.tolist(), torch.float64)
    assert recorder.updates[0]["loss/kl"] == pytest.approx(kl.item(), rel=1e-12)


# The KL term


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_mean_gradient_of_the_kl_term(estimator):
    """Rows in proportion to the policy, 1/2, 1/4, 1/8, 1/8: their mean is the expectation."""
    actions, policy = [0, 0, 0, 0, 1, 1, 2, 3], torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    reference = torch.tensor([0.3, -0.2, 0.0, 0.9], dtype=torch.float64).log_softmax(-1)
    module = TabularGRPO(policy.tolist(), reference.tolist(), optimizer=STILL, kl_beta=0.7, kl_estimator=estimator)
    rows = single_tokens(actions, [0.0] * 8, reference=reference[actions])
    gradient = fit(module, [rows]).gradients[0]["policy.logits"]
    logits = policy.clone().requires_grad_()
    divergence = {
        "k1": lambda: 0.0 * logits.sum(),
        "k2": lambda: reverse_kl(logits, reference),
        "k3": lambda: (reference.exp() * (reference - logits.log_softmax(-1))).sum(),
    }[estimator]()
    divergence.backward()
    close(gradient, (0.7 * logits.grad).tolist(), torch.float64)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_a_policy_that_is_its_own_reference_has_kl_zero(estimator):
    module = tiny_grpo(kl_beta=0.5, kl_estimator=estimator)
    recorder = fit(module, tiny_data(), max_epochs=2)
    assert recorder.updates[0]["loss/kl"] == 0.0
    assert recorder.updates[1]["loss/kl"] != 0.0


def test_the_reference_is_neither_trained_nor_saved():
    module, before = tiny_grpo(kl_beta=0.5), {}
    configure = module.configure_model

    def configure_model():
        configure()
        before.update(deepcopy(module.frozen["reference"].state_dict()))

    module.configure_model = configure_model
    recorder = fit(module, tiny_data(), max_epochs=3)
    assert not same_weights(recorder.weights[0], recorder.weights[-1])
    assert same_weights(before, module.frozen["reference"].state_dict())
    assert not any(p.requires_grad or p.grad is not None for p in module.frozen["reference"].parameters())
    trained = {name for name in module.state_dict() if not name.startswith("trained.policy.")}
    assert trained == {*COUNTERS}
    (group,) = module.trainer.optimizers[0].param_groups
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in module.trained["policy"].parameters())


# The update


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    module = TabularGRPO([0.1, 0.2, 0.3], optimizer=moving(schedule="linear"))
    good, bad = single_tokens([0, 1], [1.0, -1.0]), single_tokens([0, 1], [1.0, float("nan")])
    recorder = fit(module, [good, bad, good])
    assert same_weights(recorder.weights[1], recorder.weights[2])
    assert not same_weights(recorder.weights[2], recorder.weights[3])
    assert [update["skipped"] for update in recorder.updates] == [0.0, 1.0, 0.0]
    assert [update["lr/policy"] for update in recorder.updates] == pytest.approx([0.3, 0.2, 0.2])
    assert (int(module.updates), int(module.skipped_updates), int(module.trained_tokens)) == (2, 1, 4)


def test_gradients_are_clipped_to_the_norm():
    rows = single_tokens([0, 1], [1.0, -1.0])
    module = TabularGRPO([0.0] * 3, optimizer=moving(max_grad_norm=0.1))
    free = TabularGRPO([0.0] * 3, optimizer=moving(max_grad_norm=0.0))
    loose = TabularGRPO([0.0] * 3, optimizer=moving(max_grad_norm=0.8))
    clipped, whole, wide = (fit(m, [rows]) for m in (module, free, loose))
    gradient = whole.gradients[0]["policy.logits"]
    norm = math.sqrt(0.5)
    close(gradient, [-0.5, 0.5, 0.0], torch.float64)
    # torch adds 1e-6 to the norm it divides by
    close(clipped.gradients[0]["policy.logits"], (gradient * 0.1 / (norm + 1e-6)).tolist(), torch.float64)
    assert clipped.updates[0]["grad_norm/policy"] == pytest.approx(norm, rel=1e-12), "the norm before clipping"
    assert torch.equal(wide.gradients[0]["policy.logits"], gradient)


RATES = {
    "constant": [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8],
    "linear": [0.2, 0.4, 0.6, 0.8, 0.64, 0.48, 0.32, 0.16],
    "cosine": [0.2, 0.4, 0.6] + [0.4 * (1 + math.cos(math.pi * k / 5)) for k in range(5)],
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_rate_of_each_update_reaches_the_weights(schedule):
    """8 updates, 3 of them warm-up, over 4 epochs of 2; replayed with plain AdamW on the recorded gradients."""
    spec = OptimizerSpec(0.8, (0.7, 0.9), weight_decay=0.1, schedule=schedule, warmup_updates=3, max_grad_norm=0.0)
    minibatches = [single_tokens([0, 1, 2], [1.0, -0.5, 0.0]), single_tokens([1, 1, 0], [0.3, 0.4, -1.0])]
    recorder = fit(TabularGRPO([0.1, 0.2, 0.3], optimizer=spec), minibatches, max_epochs=4)
    assert [update["lr/policy"] for update in recorder.updates] == pytest.approx(RATES[schedule], rel=1e-12)
    logits = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    plain = torch.optim.AdamW([logits], betas=(0.7, 0.9), weight_decay=0.1, foreach=False)
    for rate, step, after in zip(RATES[schedule], recorder.gradients, recorder.weights[1:], strict=True):
        plain.param_groups[0]["lr"] = rate
        logits.grad = step["policy.logits"]
        plain.step()
        close(after["policy.logits"], logits.tolist(), torch.float64)


def test_each_epoch_is_a_round_of_further_prompts():
    seen = Seen()
    fit(tiny_grpo(), tiny_data(), seen, max_epochs=3)
    assert [kept.number for _, kept in seen.rounds] == [0, 1, 2]
    assert len({prompt.id for sampled, _ in seen.rounds for prompt in sampled.prompts}) == 3 * 4


def test_counters():
    module, data, seen = tiny_grpo(), tiny_data(steps_per_round=2, inner_epochs=3), Seen()
    fit(module, data, seen, max_epochs=2)
    assert (int(module.rounds), int(module.updates), module.trainer.global_step) == (2, 12, 12)
    sampled = [len(completion.token_ids) for everything, _ in seen.rounds for completion in everything.completions]
    assert len(sampled) == 2 * 2 * 4 * 3
    live = [kept.segments[kept.coefficients["policy"] != 0] for _, kept in seen.rounds]
    trained = 3 * sum(int((segments == int(Segment.SAMPLED)).sum()) for segments in live)
    assert (int(module.sampled_tokens), int(module.trained_tokens)) == (sum(sampled), trained)
    assert 0 < trained <= 3 * sum(sampled)
    assert int(module.empty_minibatches) == int(module.skipped_updates) == 0


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"kl_beta": -0.1}, "kl_beta is -0.1"),
        ({"reference": TINY}, "reference is given but kl_beta is 0"),
        ({"aggregation": "seq_mean_token_sum_const"}, "const_len is None"),
        ({"const_len": 8}, "const_len is 8"),
        ({"tokens_per_microbatch": 0}, "tokens_per_microbatch is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        tiny_grpo(**settings)
