"""pass@k, majority votes, intervals and the numbers of a benchmark: golden vectors, enumeration, and two ranks."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fulgurite.metrics.benchmark import FIELDS, BenchmarkMetric, measure, table_of
from fulgurite.metrics.intervals import accuracy_interval, bootstrap_interval, wilson_interval
from fulgurite.metrics.majority import majority_at_k
from fulgurite.metrics.pass_at_k import pass_at_k, pass_hat_k
from fulgurite.types import Completion, EvaluationBatch, Prompt, Verdict
from golden_vectors import cases, close, document, name_of

# pass@k and pass^k

TABLE = document("passk").get("table", [])


@pytest.mark.parametrize(("field", "formula"), [("pass_at_k", pass_at_k), ("pass_hat_k", pass_hat_k)])
def test_the_chance_among_k_is_that_of_the_oracle(field, formula):
    defined = [row for row in TABLE if row[field] is not None]
    assert len(defined) > 100 or not TABLE
    for row in defined:
        got = formula(torch.tensor([row["c"]]), row["n"], row["k"])
        close(got, [row[field]], torch.float64, f"{field} of {row}")


def test_k_above_n_has_no_value():
    for row in TABLE:
        if row["pass_at_k"] is None:
            with pytest.raises(ValueError, match=f"k is {row['k']} with {row['n']} completions"):
                pass_at_k(torch.tensor([row["c"]]), row["n"], row["k"])
    with pytest.raises(ValueError, match="k is 0"):
        pass_hat_k(torch.tensor([1]), 2, 0)


def test_many_completions_neither_overflow_nor_cancel():
    n, k = 5000, 2000
    right = torch.tensor([0, 1, 3, 3000, 3001, 5000])
    exact = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in right.tolist()]
    assert pass_at_k(right, n, k).tolist() == pytest.approx(exact, rel=1e-11)
    exact = [float(Fraction(comb(c, 300), comb(n, 300))) for c in right.tolist()]
    assert exact[3] < 1e-60
    assert pass_hat_k(right, n, 300).tolist() == pytest.approx(exact, rel=1e-11, abs=0)


@pytest.mark.parametrize("case", cases("passk", "dataset_mean"), ids=lambda case: str(case["inputs"]["correct_per_problem"]))
def test_the_mean_of_a_benchmark_is_that_of_the_oracle(case):
    n, counts = case["inputs"]["n_per_problem"][0], case["inputs"]["correct_per_problem"]
    table = torch.zeros(len(counts), n, len(FIELDS), dtype=torch.int64)
    for row, right in zip(table, counts, strict=True):
        row[:right, FIELDS.index("correct")] = 1
    measured = measure(table, (1, 4, 8))
    for k in (1, 4, 8):
        close(measured[f"pass@{k}"], case["expected"][f"pass_at_{k}"], torch.float64)
    close(measured["avg@8"], case["expected"]["avg_at_n"], torch.float64)
    assert measured["accuracy"] == measured["avg@1"] == measured["avg@8"] == measured["pass@1"]


# maj@k


@pytest.mark.parametrize("case", cases("passk", "majority"), ids=name_of)
def test_votes_are_those_of_the_oracle(case):
    answers, reference = case["inputs"]["answers"], case["inputs"]["reference"]
    correct = [answer == reference for answer in answers]
    for k, expected in case["expected"]["maj_at_k_over_subsets"].items():
        close(majority_at_k(answers, correct, int(k)), expected, torch.float64, f"maj@{k}")
    close(majority_at_k(answers, correct, len(answers)), case["expected"]["maj_expected"], torch.float64)


def vote(answers, values) -> Fraction:
    """One vote by hand: the mean value of the most frequent answers, each with a value of its own."""
    counts = {a: answers.count(a) for a in answers if a is not None}
    if not counts:
        return Fraction(0)
    winners = [a for a, count in counts.items() if count == max(counts.values())]
    return sum(values[a] for a in winners) / len(winners)


@pytest.mark.parametrize("seed", range(6))
def test_the_vote_is_the_mean_over_all_subsets(seed):
    random = Random(seed)
    answers = [random.choice(["a", "a", "a", "b", "b", "c", "d", None]) for _ in range(9)]
    correct = [answer in ("a", "d") for answer in answers]  # several spellings may be right
    for k in range(1, 10):
        subsets = [[answers[i] for i in chosen] for chosen in combinations(range(9), k)]
        values = {"a": Fraction(1), "d": Fraction(1), "b": Fraction(0), "c": Fraction(0)}
        exact = sum(vote(subset, values) for subset in subsets) / len(subsets)
        assert majority_at_k(answers, correct, k) == float(exact)


def test_an_answer_that_was_judged_both_ways_counts_by_half():
    assert majority_at_k(["x", "x", "y"], [True, False, False], 3) == 0.5


def test_votes_of_two_answers_among_many_completions():
    n, right, k = 300, 160, 101
    answers = ["right"] * right + ["wrong"] * (n - right)
    ways = sum(comb(right, v) * comb(n - right, k - v) for v in range(k // 2 + 1, k + 1))  # odd k: no tie
    assert majority_at_k(answers, [a == "right" for a in answers], k) == float(Fraction(ways, comb(n, k)))


def test_votes_are_asked_for_rightly():
    with pytest.raises(ValueError, match="k is 3 with 2 completions"):
        majority_at_k(["a", "b"], [True, False], 3)
    with pytest.raises(ValueError, match="2 answers and 1 judgements"):
        majority_at_k(["a", "b"], [True], 1)


# Intervals


def test_wilsons_interval():
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-7)  # by hand from the formula
    assert wilson_interval(0.0, 30)[0] == 0.0 and wilson_interval(0.0, 30)[1] == pytest.approx(3.841459 / 33.841459, abs=1e-6)
    assert wilson_interval(0.3, 0) == (0.0, 1.0)


def test_the_bootstrap_draws_prompts_and_not_completions():
    scores = torch.tensor([0.0, 1.0] * 200, dtype=torch.float64)
    low, high = bootstrap_interval(scores)
    half = 1.959964 * sqrt(0.25 / 400)  # the normal limit, whatever the number of completions behind each score
    # 2000 resamples leave a quantile uncertain by about 3% of the width.
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.1 * half)


def test_the_bootstrap_of_two_prompts_is_known():
    """The mean of two prompts drawn again is 0, 1/2 or 1 with the chances 1/4, 1/2, 1/4."""
    assert bootstrap_interval(torch.tensor([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(torch.tensor([0.25, 0.25])) == (0.25, 0.25)


def test_the_interval_does_not_depend_on_the_order_of_the_prompts():
    scores = torch.rand(137, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert bootstrap_interval(scores) == bootstrap_interval(scores.flip(0)) != bootstrap_interval(scores, seed=1)


def test_wilson_takes_over_where_resampling_would_say_nothing():
    single = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert accuracy_interval(single, 1) == wilson_interval(0.75, 4)
    assert accuracy_interval(single, 4) == bootstrap_interval(single)
    assert accuracy_interval(torch.zeros(30, dtype=torch.float64), 32) == wilson_interval(0.0, 30)


# The numbers of a benchmark


def said(outcome: str, answer: str | None, tokens: int = 3, cut: bool = False) -> tuple[Completion, Verdict]:
    completion = Completion(tuple(range(tokens)), (0.0,) * tokens, "length" if cut else "stop", answer or "")
    return completion, Verdict(outcome, {}, float(outcome == "correct"), answer)


def batch_of(*groups: list[tuple[Completion, Verdict]], n: int, k: tuple[int, ...] = ()) -> EvaluationBatch:
    pairs = [pair for group in groups for pair in group]
    completions, verdicts = tuple(c for c, _ in pairs), tuple(v for _, v in pairs)
    correct = torch.tensor([float(v.outcome == "correct") for v in verdicts]).view(-1, n)
    return EvaluationBatch("b", correct, tuple(Prompt(f"q{i}") for i in range(len(groups))), completions, verdicts, k)


CLEAR = [said("correct", "4"), said("correct", "4", 5), said("wrong", "5")]
SPLIT = [said("wrong", "7", 1), said("correct", "8", 9, cut=True), said("ungradable", "8", 9, cut=True)]
SILENT = [said("ungradable", None, 2)] * 3


def test_every_number_of_a_small_benchmark():
    batch = batch_of(CLEAR, SPLIT, SILENT, n=3)
    measured = measure(table_of(batch.completions, batch.verdicts, 3), (1, 2, 3))
    low, high = bootstrap_interval(torch.tensor([2 / 3, 1 / 3, 0.0], dtype=torch.float64))
    assert measured == pytest.approx(
        {
            "accuracy": 3 / 9,
            "low": low,
            "high": high,
            "prompts": 3.0,
            "tokens_per_completion": (3 + 5 + 3 + 1 + 9 + 9 + 2 + 2 + 2) / 9,
            "truncated": 2 / 9,
            "ungradable": 4 / 9,
            **{f"avg@{k}": 3 / 9 for k in (1, 2, 3)},
            "pass@1": 3 / 9,
            "pass@2": (1 + 2 / 3 + 0) / 3,
            "pass@3": 2 / 3,
            "maj@1": (2 / 3 + 1 / 3 + 0) / 3,
            "maj@2": ((1 + 1 / 2 + 1 / 2) / 3 + (1 / 2 + 0 + 1) / 3) / 3,
            "maj@3": (1 + 1 / 2 + 0) / 3,  # the ungradable 8 of the second prompt does not vote
        },
        abs=1e-12,
    )


def test_without_answers_nothing_is_voted_on_and_without_k_nothing_is_added():
    mute = batch_of([said("correct", None), said("wrong", None)], n=2)
    assert {name for name in measure(table_of(mute.completions, mute.verdicts, 2), (2,)) if "@" in name} == {"avg@2", "pass@2"}
    none_right = batch_of(SILENT, n=3)
    assert measure(table_of(none_right.completions, none_right.verdicts, 3), (2,))["maj@2"] == 0.0
    assert not any("@" in name for name in measure(table_of(mute.completions, mute.verdicts, 2), ()))


def test_a_metric_adds_batches_up_and_forgets_them_on_reset():
    metric = BenchmarkMetric(3, (3,))
    for group in (CLEAR, SPLIT, SILENT):
        metric.update(batch_of(group, n=3))
    whole = batch_of(CLEAR, SPLIT, SILENT, n=3)
    assert metric.compute() == measure(table_of(whole.completions, whole.verdicts, 3), (3,))
    metric.reset()
    metric.update(batch_of(CLEAR, n=3))
    assert metric.compute()["accuracy"] == 2 / 3 and metric.compute()["prompts"] == 1.0


def on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    # Uneven ranks; a rank whose batches are empty; a rank that gets no batch at all.
    for shares in (([CLEAR, SILENT], [SPLIT]), ([CLEAR, SPLIT, SILENT], []), ([CLEAR, SPLIT, SILENT], None)):
        metric = BenchmarkMetric(3, (2, 3))
        if shares[rank] is not None:
            metric.update(batch_of(*shares[rank], n=3))
        found.append(metric.compute())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_find_the_very_numbers_of_one(tmp_path):
    mp.spawn(on_a_rank, args=(str(tmp_path),), nprocs=2)
    whole = batch_of(CLEAR, SPLIT, SILENT, n=3)
    expected = measure(table_of(whole.completions, whole.verdicts, 3), (2, 3))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [expected] * 3
