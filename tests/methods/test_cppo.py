"""CPPO: pruning through the module's own gradient, rows gathered before any forward pass, and groups to fill an update."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import TabularGRPO, fit, single_tokens

import fulgurite.callbacks.pruning as pruning
from fulgurite.callbacks.pruning import CompletionPruning
from fulgurite.credit.group import group_advantages
from fulgurite.models.causal_lm import CausalLM
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.selection.prune import kept_count, prune
from fulgurite.types import ConfigError, Round
from golden_vectors import document
from records import make_round
from tiny import EvenDigits, tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
LOGITS = [0.3, -0.4]  # a failure, a success


class Seen(Callback):
    def __init__(self):
        self.rounds = []

    def on_round(self, trainer, module, sampled, kept):
        self.rounds.append((sampled, kept))


def credited(rewards, **settings):
    held = make_round(rewards)
    return held.with_coefficients(policy=group_advantages(held.rewards, held.group_index, "sample_std", "mean", **settings))


# The gradient, in closed form


@pytest.mark.golden
def test_the_gradient_of_every_group_has_the_coefficients_of_the_table():
    """K successes of G, pruned to k: coefficients on the score of a success and on minus that of a failure."""
    table = document("cppo")["coefficient_table"]
    minibatches = []
    for row in table:
        size, successes = row["G"], row["K"]
        actions = torch.tensor([1] * successes + [0] * (size - successes))  # successes first: they win ties, as in the table
        groups = torch.zeros(size, dtype=torch.int64)
        credit = group_advantages(actions.double(), groups, "pop_std", "mean", adv_eps=0.0)
        keep = prune(credit, groups, rate=1 - row["k"] / size)
        assert int(keep.sum()) == row["k"]
        minibatches.append(single_tokens(actions[keep], credit[keep]))
    gradients = fit(TabularGRPO(LOGITS, optimizer=STILL), minibatches).gradients
    p = torch.tensor(LOGITS, dtype=torch.float64).softmax(-1)
    success, failure = torch.tensor([-p[0], p[0]]), torch.tensor([p[1], -p[1]])
    for row, gradient in zip(table, gradients, strict=True):
        expected = row["coeff_success"] * success - row["coeff_failure"] * failure
        torch.testing.assert_close(-gradient["policy.logits"], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"rate": 0.5}, -0.5),
        ({"rate": 0.25}, -1.0),
        ({"rate": 0.5, "divisor": "group"}, -0.25),
        ({"threshold": 3.5}, -4.0),
        ({"threshold": 3.5, "divisor": "group"}, -1.0),
        ({"rate": 0.0}, -0.5),
    ],
)
def test_losses_by_hand(settings, loss):
    """Advantages 4, 2, -1, -3 at ratio 1: the loss is minus the mean of those that stay, or their sum over 4."""
    rows = single_tokens([0, 1, 0, 1], [4.0, 2.0, -1.0, -3.0])
    held = replace(make_round([[0.0] * 4], lengths=[1] * 4), tokens=rows.tokens, segments=rows.segments, columns=rows.columns)
    held = replace(held, coefficients=rows.coefficients)
    recorder = fit(TabularGRPO(LOGITS, optimizer=STILL), [CompletionPruning(**settings).transform(held).all_rows()])
    assert recorder.updates[0]["loss"] == loss


def test_nothing_kept_is_no_update_and_leaves_weights_and_momentum_alone():
    module = tiny_grpo()
    recorder = fit(module, tiny_data(), CompletionPruning(threshold=100.0), max_epochs=2)
    assert recorder.gradients == [] and int(module.empty_minibatches) == 2
    first, *others = recorder.weights
    assert all(torch.equal(first[name], after[name]) for after in others for name in first)


@pytest.mark.parametrize(
    "settings", [{"rate": 0.0}, {"rate": 0.0, "scope": "global"}, {"threshold": 0.0}, {"rate": 0.0, "divisor": "group"}]
)
def test_pruning_nothing_is_grpo_to_the_last_bit(settings):
    plain = fit(tiny_grpo(), tiny_data(inner_epochs=2), max_epochs=3)
    pruned = fit(tiny_grpo(), tiny_data(inner_epochs=2), CompletionPruning(**settings), max_epochs=3)
    assert plain.updates == pruned.updates and len(plain.gradients) == 6
    assert all(torch.equal(a[name], b[name]) for a, b in zip(plain.weights, pruned.weights, strict=True) for name in a)


# Which rows stay


def test_the_largest_stay_and_permuting_a_group_permutes_them():
    generator = torch.Generator().manual_seed(0)
    credit, groups = torch.randn(40, generator=generator), torch.arange(40) % 5
    keep = prune(credit, groups, rate=0.6)
    for group in range(5):
        size = credit[groups == group].abs()
        kept = keep[groups == group]
        assert int(kept.sum()) == kept_count(8, 0.6) == 3 and size[kept].min() > size[~kept].max()
    order = torch.randperm(40, generator=generator)
    assert torch.equal(prune(credit[order], groups[order], rate=0.6), keep[order])
    assert int(prune(credit, groups, rate=0.6, scope="global").sum()) == 16


def test_the_whole_of_a_dead_group_goes_in_the_global_scope_and_what_is_no_number_stays():
    held = credited([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    keep = prune(held.coefficients["policy"], held.group_index, rate=0.5, scope="global")
    assert keep.tolist() == [False] * 4 + [True] * 4
    odd = torch.tensor([0.1, float("nan"), 3.0, 2.0])
    assert prune(odd, torch.zeros(4, dtype=torch.int64), rate=0.75).tolist() == [False, True, False, False]
    assert prune(odd, torch.zeros(4, dtype=torch.int64), threshold=2.5).tolist() == [False, True, True, False]


def test_credit_is_that_of_the_full_group_whatever_is_pruned():
    seen = {}
    for rate in (0.0, 0.5, 0.9):
        watch = Seen()
        fit(tiny_grpo(), tiny_data(completions_per_prompt=4), watch, CompletionPruning(rate))
        sampled, kept = watch.rounds[0]
        seen[rate] = {id(c): a for c, a in zip(sampled.completions, sampled.coefficients["policy"].tolist(), strict=True)}
        assert [seen[rate][id(c)] for c in kept.completions] == kept.coefficients["policy"].tolist()
        assert len(kept) == 4 * kept_count(4, rate)
        assert torch.bincount(kept.group_index).tolist() == [kept_count(4, rate)] * 4


def test_over_ranks_the_global_scope_keeps_the_rows_that_one_process_keeps(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randint(0, 3, (6, 4), generator=generator).float().tolist()
    whole = credited(rewards)
    module = SimpleNamespace(datamodule=SimpleNamespace(steps_per_round=1), world_size=1, global_rank=0)

    def kept_on(held, rank, world):
        transform = CompletionPruning(0.5, scope="global")
        transform.trainer = SimpleNamespace(**{**vars(module), "world_size": world, "global_rank": rank})
        return transform.transform(held)

    alone = {
        (g, text.text)
        for g, text in zip(kept_on(whole, 0, 1).group_index.tolist(), kept_on(whole, 0, 1).completions, strict=True)
    }
    parts = []
    for rank in (0, 1):
        mine = whole.take(whole.group_index % 2 == rank)
        parts.append(replace(mine, group_index=mine.group_index // 2))
    values = [(part.coefficients["policy"], part.group_index) for part in parts]
    monkeypatch.setattr(pruning, "gather_over_ranks", lambda trainer, value: values)
    together = set()
    for rank, part in enumerate(parts):
        kept = kept_on(part, rank, 2)
        together |= {(g * 2 + rank, c.text) for g, c in zip(kept.group_index.tolist(), kept.completions, strict=True)}
    assert together == alone and len(alone) == 12


# Forward passes


class Counting(Callback):
    """Rows and completion tokens of every scoring pass, by model and by whether it carries a gradient."""

    def __init__(self, monkeypatch):
        self.seen = []
        original = CausalLM.score

        def score(model, tokens, keep, *args, **kwargs):
            if keep.any():
                self.seen.append((torch.is_grad_enabled(), len(tokens), int(keep.sum())))
            return original(model, tokens, keep, *args, **kwargs)

        monkeypatch.setattr(CausalLM, "score", score)

    def totals(self) -> dict[bool, tuple[int, int]]:
        return {
            grad: (sum(n for g, n, _ in self.seen if g is grad), sum(t for g, _, t in self.seen if g is grad))
            for grad in (False, True)
        }


@pytest.mark.parametrize("settings", [{}, {"divisor": "group"}, {"scope": "global"}])
def test_no_old_reference_or_policy_pass_sees_a_pruned_row(monkeypatch, settings):
    watch, counting = Seen(), Counting(monkeypatch)
    data = tiny_data(completions_per_prompt=4, prompts_per_step=4, inner_epochs=2)
    fit(tiny_grpo(kl_beta=0.1), data, watch, CompletionPruning(0.75, **settings), max_epochs=1)
    ((sampled, kept),) = watch.rounds
    read = kept.read_rows()
    assert len(sampled) == 16 and int(read.sum()) == 4
    tokens = sum(len(c.token_ids) for c, is_read in zip(kept.completions, read.tolist(), strict=True) if is_read)
    assert counting.totals() == {False: (8, 2 * tokens), True: (8, 2 * tokens)}  # old and reference; two inner epochs


def test_pruned_rows_count_in_the_denominator_of_the_group_divisor_and_nowhere_else():
    results = {}
    for divisor in ("retained", "group"):
        data = tiny_data(completions_per_prompt=4, inner_epochs=2)
        module = tiny_grpo(kl_beta=0.1, optimizer=STILL)
        results[divisor] = fit(module, data, CompletionPruning(0.75, divisor=divisor))
    for retained, group in zip(results["retained"].gradients, results["group"].gradients, strict=True):
        for name in retained:
            torch.testing.assert_close(group[name] * 4, retained[name], rtol=1e-5, atol=1e-7)  # float32
    kept_rows = [update["loss/entropy"] for update in results["group"].updates]
    assert kept_rows == [update["loss/entropy"] for update in results["retained"].updates]


# Completion allocation


def test_an_update_is_filled_with_pruned_groups_of_further_prompts_sampled_at_once():
    watch = Seen()
    data = tiny_data(completions_per_prompt=4, prompts_per_step=2, fill_to=8, steps_per_round=2)
    fit(tiny_grpo(), data, watch, CompletionPruning(0.75), max_epochs=2)
    for sampled, kept in watch.rounds:
        assert len(sampled.prompts) == 16 and len(sampled) == 64  # 8 / 1 groups in each of two updates, in one sampling
        assert [len(kept.minibatch(step)) for step in (0, 1)] == [8, 8]
        assert len(kept.group_index.unique()) == 16
    first, second = ([prompt.id for prompt in sampled.prompts] for sampled, _ in watch.rounds)
    assert not set(first) & set(second)


def test_dead_groups_are_replaced_and_live_ones_pruned_in_one_filling():
    class Halves(EvenDigits):
        def judge(self, prompt, completion):
            verdict = super().judge(prompt, completion)
            dead = sum(map(int, prompt.text[:3:2])) % 2
            return replace(verdict, reward=1.0, rewards={"even": 1.0}) if dead else verdict

    watch = Seen()
    data = tiny_data(task=Halves(digits=1), completions_per_prompt=4, fill_to=8, zero_variance="drop", max_fill_rounds=20)
    fit(tiny_grpo(), data, watch, CompletionPruning(0.5), max_epochs=2)
    for sampled, kept in watch.rounds:
        assert len(kept) == 8 and len(sampled) >= 16
        assert all(
            kept.coefficients["policy"][kept.group_index == group].abs().max() > 0 for group in kept.group_index.unique()
        )


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "CompletionPruning has rate None and threshold None; expected one of them"),
        ({"rate": 0.5, "threshold": 1.0}, "has rate 0.5 and threshold 1.0"),
        ({"rate": 1.0}, "rate is 1.0; expected a share from 0"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"rate": 0.5, "scope": "device"}, "scope is 'device'; expected group or global"),
        ({"rate": 0.5, "divisor": "all"}, "divisor is 'all'; expected retained or group"),
        ({"rate": 0.5, "remove": "random"}, "remove is 'random'; expected smallest or largest"),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        CompletionPruning(**settings)


def test_one_of_ten_stays_at_nine_tenths():
    assert [kept_count(10, 0.9), kept_count(16, 0.9375), kept_count(2, 0.9), kept_count(0, 0.5)] == [1, 1, 1, 0]
    assert [kept_count(20, 0.9), kept_count(100, 0.9)] == [2, 10]


def test_a_round_with_rows_that_are_only_counted_is_saved_as_data(tmp_path):
    held = CompletionPruning(0.5, divisor="group").transform(credited([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.5]]))
    torch.save(held.to_state(), tmp_path / "round.pt")
    again = Round.from_state(torch.load(tmp_path / "round.pt", weights_only=True))
    assert torch.equal(again.counted_only, held.counted_only) and int(again.read_rows().sum()) == 4
    part = again.take(again.group_index == 1).minibatch(0)
    assert len(part) == 4 and part.read_rows().tolist() == held.read_rows()[4:].tolist()
