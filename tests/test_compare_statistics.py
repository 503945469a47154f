"""Curves, areas, costs and budgets by hand, paired differences, the whole summary, and readings that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from fulgurite.compare import statistics
from fulgurite.compare.statistics import GRID, Curve, RunReading, summarise

pytestmark = pytest.mark.filterwarnings("error")


def run(x, outcomes, state="finished", **counters) -> RunReading:
    counters = {"prompts": x, **counters}
    rows = [dict(zip(counters, values, strict=True)) for values in zip(*counters.values(), strict=True)]
    outcomes = np.array(outcomes, dtype=float)
    return RunReading(state, "", rows, outcomes if outcomes.ndim == 2 else outcomes[:, None], {"train": 1.0})


def curve(name, *runs) -> Curve:
    return Curve(name, "sampled", {}, dict(enumerate(runs)))


def random_curve(name, seeds=3) -> Curve:
    generator = np.random.default_rng(seeds)
    return curve(name, *(run([0, 10, 25], generator.random((3, 40))) for _ in range(seeds)))


def along(curves, pairs=(), margin=0.05) -> dict:
    return summarise(curves, ["prompts"], pairs, 0.5, margin)["axes"][0]


# One run along an axis


def test_outcomes_are_interpolated_prompt_by_prompt():
    outcomes = np.array([[0.0, 1.0], [1.0, 0.5], [0.5, 0.5]])
    grid = np.array([0, 1, 2, 3, 4, 9])
    got = statistics.grid_weights(np.array([0.0, 2, 4]), grid) @ outcomes
    assert got.tolist() == [[0, 1], [0.5, 0.75], [1, 0.5], [0.75, 0.5], [0.5, 0.5], [0.5, 0.5]]
    for prompt in range(2):
        assert got[:, prompt].tolist() == np.interp(grid, [0, 2, 4], outcomes[:, prompt]).tolist()


def test_where_an_axis_stands_still_the_later_evaluation_holds():
    got = statistics.grid_weights(np.array([0.0, 2, 2, 4]), np.array([1, 2, 3])) @ [0.0, 0.2, 0.8, 1.0]
    assert got.tolist() == pytest.approx([0.1, 0.8, 0.9], abs=1e-15)


@pytest.mark.parametrize(
    ("x", "outcomes", "budget", "area"),
    [
        ([0, 2, 4], [0, 1, 0], 4, 2 / 4),
        ([0, 2, 4], [0, 1, 0], 3, 1.75 / 3),
        ([0, 2, 4], [0, 1, 0], 2, 1 / 2),
        ([0, 2, 4], [0, 1, 0], 1, 0.25),
        ([0, 2], [0, 1], 4, 3 / 4),
        ([0, 2, 2, 4], [0, 0, 1, 1], 4, 2 / 4),
        ([0, 2, 2, 4], [0, 0, 1, 1], 3, 1 / 3),
        ([0, 2, 2, 4], [0, 0, 1, 1], 2, 0),
        ([0], [0.3], 5, 0.3),
        ([0, 0], [0.3, 0.6], 5, 0.6),
    ],
)
def test_the_area_is_exact(x, outcomes, budget, area):
    assert statistics.area_weights(np.array(x, dtype=float), budget) @ outcomes == pytest.approx(area, abs=1e-15)


@pytest.mark.parametrize(
    ("accuracies", "target", "cost"),
    [
        ([0.0, 0.5, 1.0], 0.25, 5),
        ([0.0, 0.5, 1.0], 0.5, 10),
        ([0.0, 0.5, 1.0], 1.0, 30),
        ([0.0, 0.5, 1.0], 1.01, None),
        ([0.5, 0.1, 0.9], 0.5, 0),
        ([0.0, 0.6, 0.2], 0.3, 5),
        ([0.0, 0.6 - 1e-16, 0.7], 0.6, 10),
        ([0.0, 0.6 - 1e-6, 0.7], 0.6, pytest.approx(10.0002, abs=1e-6)),
    ],
)
def test_the_cost_is_the_first_crossing(accuracies, target, cost):
    assert statistics.cost_to_target(np.array([0.0, 10, 30]), np.array(accuracies), target) == cost


def test_the_median_cost_counts_runs_that_never_reach_as_infinite():
    def costs(*lasts):
        return along([curve("a", *(run([0, 10], [0, last]) for last in lasts))])["curves"][0]["cost_to_target"]

    by_seed = [{"seed": 0, "value": 5.0}, {"seed": 1, "value": None}, {"seed": 2, "value": 10.0}]
    assert costs(1, 0.4, 0.5) == {"median": 10.0, "reached": 2, "of": 3, "by_seed": by_seed}
    assert costs(0.4, 0.4, 0.5)["median"] is None
    assert costs(0.4, 1)["median"] is None
    assert costs(0.4, 0.4) == {"median": None, "reached": 0, "of": 2, "by_seed": [{"seed": s, "value": None} for s in (0, 1)]}
    assert costs(1, 0.5)["median"] == 7.5


def test_a_cost_may_lie_beyond_the_budget():
    long, short = along([curve("a", run([0, 40], [0, 1])), curve("b", run([0, 10], [0, 1]))])["curves"]
    assert (long["cost_to_target"]["median"], short["cost_to_target"]["median"]) == (20, 5)


# The budget, and who is on an axis


@pytest.mark.parametrize("state", ["stopped by a guard", "failed"])
def test_a_stopped_run_does_not_lower_the_budget_and_keeps_its_last_outcomes(state):
    stopped = run([0, 4], [[0, 0], [1, 0.5]], state)
    found = along([curve("a", run([0, 20], [[0, 0], [1, 1]]), stopped), curve("b", run([0, 30], [[0, 0], [1, 1]]))])
    assert found["budget"] == 20
    assert found["grid"] == [i / 2 for i in range(GRID)]
    assert found["curves"][0]["mean"] == pytest.approx([(i / 40 + 0.75 * min(i / 8, 1)) / 2 for i in range(GRID)])
    assert found["curves"][0]["end"]["value"] == 0.875
    assert found["curves"][0]["area"]["value"] == pytest.approx((0.5 + 0.75 * 18 / 20) / 2)
    assert found["curves"][1]["end"]["value"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("lasts", "states"), [((4, 9), ("stopped by a guard", "failed")), ((0, 9), ("finished", "finished"))])
def test_the_budget_is_never_0_and_without_a_finished_run_the_longest(lasts, states):
    runs = [run([0, last], [0, 0], state) for last, state in zip(lasts, states, strict=True)]
    assert statistics.common_budget([curve("a", *runs)], "prompts") == 9


def test_an_axis_is_left_out_where_it_does_not_move():
    moves = curve("a", run([0, 5], [0, 1], gpu=[0, 3.0], none=[0, 0]), run([0, 5], [0, 1], gpu=[0, 0.0], none=[0, 0]))
    still = curve("b", run([0, 4], [0, 1], gpu=[0, 0.0], none=[0, 0]))
    axes = summarise([moves, still], ["gpu", "none", "prompts"], [("a", "b"), ("b", "a"), ("a", "a")], 0.5, 0.1)["axes"]
    named = [(axis["axis"], axis["budget"], [row["name"] for row in axis["curves"]]) for axis in axes]
    assert named == [("gpu", 3, ["a"]), ("prompts", 4, ["a", "b"])]
    compared = [[(pair["first"], pair["second"]) for pair in axis["pairs"]] for axis in axes]
    assert compared == [[("a", "a")], [("a", "b"), ("b", "a"), ("a", "a")]]


# Intervals and pairs


def test_seeds_that_differ_make_it_wide_though_prompts_do_not():
    end = along([curve("a", *(run([0, 1], [[0] * 50, [p] * 50]) for p in (0.2, 0.5, 0.8)))])["curves"][0]["end"]
    assert end == pytest.approx({"value": 0.5, "low": 0.2, "high": 0.8})


def test_a_curve_has_an_interval_at_every_point():
    row = along([random_curve("a")])["curves"][0]
    assert len(row["mean"]) == len(row["low"]) == len(row["high"]) == GRID
    assert all(low < mean < high for low, mean, high in zip(row["low"], row["mean"], row["high"], strict=True))
    assert row["end"] == {"value": row["mean"][-1], "low": row["low"][-1], "high": row["high"][-1]}
    assert row["area"]["value"] == pytest.approx(np.trapezoid(row["mean"], dx=1 / 40), abs=0.001)


def test_a_paired_difference_has_only_the_spread_of_the_difference():
    base = random_curve("a")
    shifted = Curve("b", "", {}, {s: replace(r, outcomes=r.outcomes * 0.5 + 0.1) for s, r in base.runs.items()})
    base = Curve("a", "", {}, {s: replace(r, outcomes=r.outcomes * 0.5) for s, r in base.runs.items()})
    same = {"value": 0, "low": 0, "high": 0, "verdict": "on par"}
    pairs = along([base, shifted], pairs=[("a", "a"), ("b", "a"), ("a", "b")])["pairs"]
    assert [pairs[0][key] for key in ("end", "area")] == [same, same]
    for key in ("end", "area"):
        assert [pair[key].pop("verdict") for pair in pairs] == ["on par", "better", "worse"]
        assert list(pairs[1][key].values()) == pytest.approx([0.1] * 3, abs=1e-15)
        assert list(pairs[2][key].values()) == pytest.approx([-0.1] * 3, abs=1e-15)
    assert along([base, shifted], pairs=[("b", "a")], margin=0.2)["pairs"][0]["end"]["verdict"] == "on par"


def test_a_pair_has_the_budget_of_its_two_curves():
    short, long = curve("short", *[run([0, 4], [0, 0.4])] * 2), curve("long", *[run([0, 20], [0, 1])] * 2)
    longer = curve("longer", *[run([0, 40], [0, 1])] * 2)
    found = along([short, long, longer], pairs=[("long", "short"), ("long", "longer")])
    assert found["budget"] == 4
    assert [pair["budget"] for pair in found["pairs"]] == [4, 20]
    assert [pair["end"]["value"] for pair in found["pairs"]] == pytest.approx([-0.2, 0.5])
    assert [pair["area"]["value"] for pair in found["pairs"]] == pytest.approx([-0.1, 0.25])


def test_end_and_area_are_told_apart():
    early, late = curve("early", *[run([0, 1, 10], [0, 1, 1])] * 2), curve("late", *[run([0, 9, 10], [0, 0, 0.9])] * 2)
    pair = along([early, late], pairs=[("early", "late")])["pairs"][0]
    assert pair["end"]["value"] == pytest.approx(0.1)
    assert pair["area"]["value"] == pytest.approx(0.95 - 0.045)


def test_a_pair_uses_the_seeds_that_both_have():
    first = Curve("a", "", {}, {3: run([0, 1], [0, 0.9]), 1: run([0, 1], [0, 0.5]), 0: run([0, 1], [0, 0])})
    second = Curve("b", "", {}, {1: run([0, 1], [0, 0.3]), 2: run([0, 1], [0, 0]), 3: run([0, 1], [0, 0.7])})
    end = along([first, second], pairs=[("a", "b")])["pairs"][0]["end"]
    assert end == {key: pytest.approx(0.2) for key in ("value", "low", "high")} | {"verdict": "better"}
    second.runs.pop(3)
    end = along([first, second], pairs=[("a", "b")])["pairs"][0]["end"]
    assert end == {key: pytest.approx(0.2) for key in ("value", "low", "high")} | {"verdict": "undecided (one seed)"}


# The whole summary


def test_the_summary_is_plain_json_and_the_same_again():
    curves = [random_curve("a", 3), random_curve("b", 2)]
    arguments = (curves, ["prompts"], [("a", "b")], 0.99, 0.05)
    text = json.dumps(summarise(*arguments), allow_nan=False)
    assert text.count('"undecided"') == 2
    assert json.loads(text) == summarise(*arguments) == summarise(*arguments, seed=0, resamples=2000)
    assert summarise(*arguments, seed=1) != summarise(*arguments) != summarise(*arguments, resamples=1999)
    turned = [replace(one, runs=dict(reversed(one.runs.items()))) for one in curves]
    assert summarise(turned, *arguments[1:]) == summarise(*arguments)
    alone = summarise(curves[1:], ["prompts"], [], 0.99, 0.05)
    assert alone["axes"][0]["curves"] == summarise(*arguments)["axes"][0]["curves"][1:]


def test_the_summary_shows_every_run():
    first = replace(run([0, 8], [[0, 0], [1, 0.5]], cpu=[0, np.int64(2)], other=[0, nan]), phases={"train": 3.0, "sample": 2.0})
    second = replace(run([0, 6], [[0, 1], [1, 1]], "failed", cpu=[0, 1], other=[0, 9]), note="out of memory")
    shown = Curve("a", "greedy", {"learning rate": "0.001"}, {8: second, 4: first})
    found = json.loads(json.dumps(summarise([shown], ["prompts", "cpu"], [], 0.6, 0.05), allow_nan=False))
    assert {key: found[key] for key in ("seeds", "target", "margin")} == {"seeds": [4, 8], "target": 0.6, "margin": 0.05}
    points = [
        [{"prompts": 0, "cpu": 0, "accuracy": 0}, {"prompts": 8, "cpu": 2, "accuracy": 0.75}],
        [{"prompts": 0, "cpu": 0, "accuracy": 0.5}, {"prompts": 6, "cpu": 1, "accuracy": 1}],
    ]
    assert found["curves"][0].pop("runs") == [
        {"seed": 4, "state": "finished", "note": "", "points": points[0]},
        {"seed": 8, "state": "failed", "note": "out of memory", "points": points[1]},
    ]
    top = {"name": "a", "benchmark": "greedy", "settings": {"learning rate": "0.001"}}
    assert found["curves"] == [top | {"phases": {"train": 2.0, "sample": 1.0}}]


GOOD = run([0, 5], [[0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("curves", "pairs", "message"),
    [
        ([], [], r"are \[\], expected at least one curve"),
        ([curve("a", GOOD), curve("a", GOOD)], [], r"\('a', \[0\]\), \('a', \[0\]\)\], expected .* each name once"),
        ([curve("a", GOOD), curve("b")], [], r"\('b', \[\]\)\], expected .* each with a run"),
        ([curve("a", GOOD)], [("a", "c")], r"'a' and 'c', expected two of the curves \['a'\]"),
        ([curve("a", GOOD)], [("c", "a")], r"'c' and 'a', expected two of the curves \['a'\]"),
        ([curve("a", GOOD), Curve("b", "", {}, {3: GOOD})], [("a", "b")], r"seeds \[0\] and \[3\], expected a pair to share"),
        ([curve("a", GOOD, run([0, 5], [[0], [1]]))], [], r"have \[1, 2\] prompts, expected the same"),
        ([curve("a", GOOD, replace(GOOD, state="ended"))], [], r"'a' with seed 1 is 'ended', expected one of \('finished', "),
        ([curve("a", replace(GOOD, rows=GOOD.rows[:1]))], [], r"'a' with seed 0 has 1 rows and outcomes \(2, 2\), expected"),
        ([curve("a", replace(GOOD, rows=[], outcomes=np.zeros((0, 2))))], [], r"0 rows and outcomes \(0, 2\), expected"),
        ([curve("a", replace(GOOD, outcomes=np.zeros((2, 0))))], [], r"2 rows and outcomes \(2, 0\), expected"),
        ([curve("a", replace(GOOD, outcomes=np.zeros(2)))], [], r"2 rows and outcomes \(2,\), expected"),
        ([curve("a", run([0, 5], [0, 1.1]))], [], r"outcomes 0.0 to 1.1, expected shares from 0 to 1"),
        ([curve("a", run([0, 5], [-0.1, 1]))], [], r"outcomes -0.1 to 1.0, expected shares"),
        ([curve("a", run([0, 5], [0, nan]))], [], r"outcomes nan to nan, expected shares"),
        ([curve("a", run([0, 5, 4], [0, 1, 1]))], [], r"prompts \[0, 5, 4\], expected a counter from 0 that never falls"),
        ([curve("a", run([1, 5], [0, 1]))], [], r"prompts \[1, 5\], expected a counter from 0"),
        ([curve("a", run([0, inf], [0, 1]))], [], r"prompts \[0, inf\], expected a counter"),
        ([curve("a", replace(GOOD, rows=[{"prompts": 0}, {}]))], [], r"prompts \[0, nan\], expected a counter"),
    ],
)
def test_readings_that_do_not_fit_are_refused(curves, pairs, message):
    with pytest.raises(ValueError, match=message):
        summarise(curves, ["prompts"], pairs, 0.5, 0.05)
