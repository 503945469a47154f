"""Importance weights through the module's own `training_step`: closed forms, an exact expectation, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp, inf, log

import pytest
import torch
from tabular import TabularGRPO, assert_same, fit, single_tokens
from torch.nn.utils.rnn import pad_sequence

from fulgurite.losses.importance import Importance, effective_sample_size, gap_statistics, raw_weight
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.types import ConfigError, Minibatch, SamplingSpec, Segment
from golden_vectors import close
from tiny import tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
THIRD = -log(3)  # what a table of three equal logits gives each token
SHIFTS = torch.tensor([log(1.5), log(3.0), log(0.8), log(0.1)], dtype=torch.float64)
"""log-probability of the trainer less that of the engine, of one row each."""
ACTIONS, CREDIT = [0, 1, 2, 0], [1.0, -1.0, 0.5, 2.0]


def gradient_of(rows: Minibatch, importance: Importance | None, **settings) -> tuple[torch.Tensor, dict[str, float]]:
    module = TabularGRPO([0.0] * 3, optimizer=STILL, importance=importance, **settings)
    recorder = fit(module, [rows])
    return recorder.gradients[0]["policy.logits"], recorder.updates[0]


def weighted_score(weights: list[float]) -> list[float]:
    """Gradient of the loss by hand: - mean over rows of weight x credit x (one-hot - 1/3)."""
    weights, credit = (torch.tensor(numbers, dtype=torch.float64) for numbers in (weights, CREDIT))
    scores = torch.eye(3, dtype=torch.float64)[ACTIONS] - 1 / 3
    return (-(weights * credit)[:, None] * scores).mean(0).tolist()


# One token a row, closed forms


USED = {
    "cap 2": (Importance(cap=2.0), [1.5, 2.0, 0.8, 0.1], 1 / 4),
    "no cap": (Importance(cap=inf), [1.5, 3.0, 0.8, 0.1], 0.0),
    "mask": (Importance(mode="mask", low=0.5, high=2.0), [1.5, 0.0, 0.8, 0.0], 1 / 2),
    "all rejected but one": (Importance(mode="mask", low=0.7, high=1.0), [0.0, 0.0, 0.8, 0.0], 3 / 4),
}


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_product"])
def test_each_row_counts_by_its_weight_and_the_denominator_stays(name, level):
    importance, weights, bounded = USED[name]
    rows = single_tokens(ACTIONS, CREDIT, engine=THIRD - SHIFTS)
    got, update = gradient_of(rows, replace(importance, level=level))
    close(got, weighted_score(weights), torch.float64)
    raw = [1.5, 3.0, 0.8, 0.1]
    assert update["mismatch/weight_mean"] == pytest.approx(sum(weights) / 4, rel=1e-12)
    assert update["mismatch/bounded"] == bounded
    share = sum(raw) ** 2 / (4 * sum(w * w for w in raw))
    assert update["mismatch/effective_sample_size"] == pytest.approx(share, rel=1e-12), "of the raw weights"
    assert update["mismatch/logprob_gap_mean_nats"] == pytest.approx(float(SHIFTS.abs().mean()), rel=1e-12)
    assert update["mismatch/logprob_gap_max_nats"] == pytest.approx(log(10), rel=1e-12)
    p99 = log(3) + 0.97 * (log(10) - log(3))  # place 0.99 * 3 of four values in order
    assert update["mismatch/logprob_gap_p99_nats"] == pytest.approx(p99, rel=1e-12)


def test_rejected_tokens_leave_exactly_nothing():
    rows = single_tokens(ACTIONS, CREDIT, engine=THIRD + torch.full((4,), 9.0))
    got, update = gradient_of(rows, Importance(mode="mask"))
    assert torch.equal(got, torch.zeros(3)) and update["loss"] == 0.0
    assert (update["mismatch/weight_mean"], update["mismatch/bounded"]) == (0.0, 1.0)


def test_the_kl_term_is_not_weighted():
    rows = single_tokens(ACTIONS, [0.0] * 4, engine=THIRD - SHIFTS, reference=torch.tensor([-1.0, -1.5, -0.7, -1.0]))
    kl = {"kl_beta": 0.7, "kl_estimator": "k3"}
    plain, weighted = (gradient_of(rows, importance, **kl) for importance in (None, Importance(mode="mask")))
    assert plain[0].abs().max() > 0.01 and torch.equal(weighted[0], plain[0])


def test_without_importance_the_gap_is_measured_and_nothing_is_weighted():
    rows = single_tokens(ACTIONS, CREDIT, engine=THIRD - SHIFTS)
    got, update = gradient_of(rows, None)
    close(got, weighted_score([1.0] * 4), torch.float64)
    measured = {name.removeprefix("mismatch/") for name in update if name.startswith("mismatch/")}
    gaps = {f"logprob_gap_{kind}_nats" for kind in ("mean", "p99", "max")}
    assert measured == {*gaps, "effective_sample_size"}


def test_in_the_second_inner_epoch_the_weight_is_that_of_the_first():
    """The weight compares the policy that sampled with itself, in two engines; what has been learned since is the ratio's."""
    moving = OptimizerSpec(learning_rate=0.3, max_grad_norm=0.0)
    old = torch.full((2,), THIRD, dtype=torch.float64)
    rows = single_tokens([0, 1], [1.0, -1.0], old=old, engine=old - SHIFTS[[0, 2]])
    module = TabularGRPO([0.0] * 3, optimizer=moving, importance=Importance(), eps_low=0.9, eps_high=0.9)
    recorder = fit(module, [rows, rows])
    # Adam's first step is the rate times the sign of the gradient: it leads to the logits 0.3, -0.3, and +-0.3.
    p = recorder.weights[1]["policy.logits"].softmax(-1)
    assert 3 * p[0] > 1.1 and 3 * p[1] < 0.9
    ratio, scores = 3 * p[:2], torch.eye(3)[:2] - p
    want = -(torch.tensor([1.5, -0.8], dtype=torch.float64) * ratio)[:, None] * scores / 2
    close(recorder.gradients[1]["policy.logits"], want.sum(0).tolist(), torch.float64)
    first, second = ({k: v for k, v in update.items() if k.startswith("mismatch/")} for update in recorder.updates)
    assert first == second


# Whole sequences: the untruncated product is unbiased


def all_sequences(length: int) -> list[list[int]]:
    """Everything that three tokens can say, where token 2 ends a sequence and `length` does too."""
    return [
        list(said) + end
        for size in range(length)
        for said in product((0, 1), repeat=size)
        for end in ([[2]] if size < length - 1 else [[0], [1], [2]])
    ]


def test_the_product_of_the_ratios_makes_another_behaviour_policy_unbiased():
    logits, behaviour = [0.4, -0.2, -0.5], torch.tensor([-0.3, 0.5, -0.1], dtype=torch.float64).log_softmax(-1)
    sequences = all_sequences(3)
    chance = torch.stack([behaviour[y].sum() for y in map(torch.tensor, sequences)]).exp()
    assert float(chance.sum()) == pytest.approx(1.0, rel=1e-12)
    credit = torch.linspace(-1, 2, len(sequences), dtype=torch.float64)
    rows = Minibatch(
        tokens=pad_sequence([torch.tensor([0, *y]) for y in sequences], batch_first=True),
        segments=pad_sequence(
            [torch.tensor([Segment.PROMPT, *[Segment.SAMPLED] * len(y)], dtype=torch.uint8) for y in sequences],
            batch_first=True,
        ),
        # The loss is linear in the credit, so a sequence's chance may stand in it.
        coefficients={"policy": chance * len(sequences) * credit},
        columns={"engine": pad_sequence([torch.cat([behaviour[:1], behaviour[y]]) for y in sequences], batch_first=True)},
    )
    table = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    logp = table.log_softmax(-1)
    expected_credit = (torch.stack([logp[y].sum() for y in sequences]).exp() * credit).sum()
    (want,) = torch.autograd.grad(expected_credit, table)

    def ascent(level):
        module = TabularGRPO(
            logits, optimizer=STILL, aggregation="seq_mean_token_sum", importance=level and Importance(level, cap=inf)
        )
        return -fit(module, [rows]).gradients[0]["policy.logits"]

    close(ascent("sequence_product"), want.tolist(), torch.float64)
    for level in ("token", "sequence", None):
        assert (ascent(level) - want).abs().max() > 0.02, f"{level} is biased here, else the test shows nothing"


# In a run


@pytest.mark.parametrize("importance", [Importance(), Importance("sequence_product", "mask")], ids=["truncate", "mask"])
def test_with_an_engine_that_agrees_nothing_changes(importance):
    """The embedded engine agrees up to float32 rounding of the log-probabilities, about 1e-6."""
    plain, weighted = (fit(tiny_grpo(importance=i), tiny_data()) for i in (None, importance))
    assert_same(weighted.gradients[0], plain.gradients[0], relative=1e-5)  # the product adds the rounding of five tokens
    update = weighted.updates[0]
    assert update["mismatch/logprob_gap_max_nats"] < 1e-5
    assert update["mismatch/effective_sample_size"] == pytest.approx(1.0, abs=1e-6)
    assert update["mismatch/weight_mean"] == pytest.approx(1.0, abs=1e-5) and update["mismatch/bounded"] == 0.0


def test_an_equal_engine_column_changes_no_bit():
    rows = single_tokens(ACTIONS, CREDIT, engine=torch.full((4,), THIRD), old=torch.full((4,), THIRD))
    plain, weighted = (gradient_of(rows, importance)[0] for importance in (None, Importance()))
    assert torch.equal(plain, weighted)


def test_importance_needs_the_engine_column():
    held = tiny_grpo(importance=Importance()).loss_columns(1), tiny_grpo(importance=Importance()).loss_columns(2)
    assert held == (("engine",), ("old", "engine"))


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 5}], ids=str)
def test_cut_sampling_with_importance_is_refused_before_a_model_loads(cut, monkeypatch):
    def no_model(source):
        raise AssertionError("a model was loaded")

    spec = SamplingSpec(max_new_tokens=5, **cut)
    with monkeypatch.context() as patch:
        patch.setattr("fulgurite.models.causal_lm.CausalLM.load", no_model)
        words = f"sampling.top_p is {spec.top_p} and sampling.top_k {spec.top_k} together with importance"
        with pytest.raises(ConfigError, match=words):
            fit(tiny_grpo(importance=Importance()), tiny_data(sampling=spec))
    assert int(_fitted(tiny_grpo(), tiny_data(sampling=spec)).updates) == 1
    assert int(_fitted(tiny_grpo(importance=Importance()), tiny_data()).updates) == 1


def _fitted(module, data):
    fit(module, data)
    return module


# Settings and edges


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "sequence_mean"}, "importance.level is 'sequence_mean'; expected one of token, sequence, sequence_product"),
        ({"mode": "clip"}, "importance.mode is 'clip'; expected one of truncate, mask"),
        ({"cap": 0.0}, "importance.cap is 0.0; expected a positive number"),
        ({"cap": float("nan")}, "importance.cap is nan"),
        ({"low": -0.1}, "importance.low is -0.1"),
        ({"low": 3.0}, "importance.low is 3.0 and importance.high 2.0; expected 0 <= low <= high"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Importance(**settings)


def test_weights_carry_no_gradient():
    old, engine = (torch.full((1, 2), value, requires_grad=True) for value in (-1.0, -2.0))
    keep = torch.tensor([[True, False]])
    for level in ("token", "sequence", "sequence_product"):
        raw = raw_weight(old, engine, keep, level)
        assert not raw.requires_grad and raw.tolist() == [[pytest.approx(exp(1)), 0.0]]


def test_nothing_has_no_effective_sample_size_and_no_gap():
    assert effective_sample_size(torch.zeros(0)) == effective_sample_size(torch.zeros(3)) == 0.0
    assert {float(value) for value in gap_statistics(torch.zeros(0)).values()} == {0.0}
    assert float(effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0]))) == 0.25
    assert float(effective_sample_size(torch.tensor([exp(20.0), 1.0]))) == pytest.approx(0.5, rel=1e-6)
    gaps = gap_statistics(torch.arange(101.0))
    assert (float(gaps["mean"]), float(gaps["p99"]), float(gaps["max"])) == (50.0, 99.0, 100.0)
