"""Two processes take the same five updates as one, under FSDP2 and under DDP, and fail together. See ranks.py."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.xdist_group("two ranks")

CASES = ("grpo", "kl", "pruned", "garl", "paft", "exact kl", "supervised", "adapters")
FSDP2_ONLY = ("codistill", "kl, little memory", "kl, bfloat16")
both_ways = pytest.mark.parametrize(
    ("case", "way"),
    [*((case, way) for case in CASES for way in ("fsdp2", "ddp")), *((case, "fsdp2") for case in FSDP2_ONLY[:2])],
)


def run(case: str, folder: Path) -> str:
    script = Path(__file__).with_name("ranks.py")
    return subprocess.run([sys.executable, script, case, folder], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    @cache
    def records_of(case: str) -> dict[str, list[dict]]:
        """{way: one record per rank}"""
        folder = tmp_path_factory.mktemp("ranks")
        statuses = run(case, folder)
        ends = "\n".join("".join(file.read_text()[-500:]) for file in folder.glob("*/out.*"))
        ways = ["one", "fsdp2"] + ["ddp"] * (case not in FSDP2_ONLY)
        assert statuses.splitlines() == ["one [0]", *(f"{way} [0, 0]" for way in ways[1:])], f"{statuses}{ends}"
        return {way: [torch.load(f) for f in sorted((folder / way).glob("*.pt"))] for way in ways}

    return records_of


@both_ways
def test_two_processes_train_on_the_same_rows(records, case, way):
    (one,), (first, second) = records(case)["one"], records(case)[way]
    assert len(one["rows"]) == 5
    for whole, mine, other in zip(one["rows"], first["rows"], second["rows"], strict=True):
        assert sorted(whole) == sorted(mine + other)
    assert one["counters"] == first["counters"] == second["counters"]
    assert one["counters"]["updates"] == 5


@both_ways
def test_two_processes_take_the_same_updates(records, case, way):
    (one,), ranks = records(case)["one"], records(case)[way]
    for rank in ranks:
        for want, got in zip(one["updates"], rank["updates"], strict=True):
            assert got == pytest.approx(want, rel=1e-7, abs=1e-10)
        for want, got in zip(one["gradients"], rank["gradients"], strict=True):
            scale = max(float(gradient.abs().max()) for gradient in want.values())
            assert max(float((want[name] - got[name]).abs().max()) for name in want) < 1e-6 * scale
        for want, got in zip(one["weights"], rank["weights"], strict=True):
            assert max(float((want[name] - got[name]).abs().max()) for name in want) < 1e-6
    moved = max(float((one["weights"][0][n] - one["weights"][-1][n]).abs().max()) for n in one["weights"][0])
    assert moved > 1e-2
    for name, weights in ranks[0]["weights"][-1].items():
        assert torch.equal(weights, ranks[1]["weights"][-1][name]), name


def test_activations_computed_again_change_nothing(records):
    (kept,), (again,) = records("kl")["one"], records("kl, little memory")["one"]
    assert kept["rows"] == again["rows"] and kept["updates"] == again["updates"]
    assert all(torch.equal(kept["gradients"][-1][name], again["gradients"][-1][name]) for name in kept["gradients"][-1])


def test_layers_gathered_in_bfloat16_give_nearly_the_same_gradient(records):
    (one,), (rank, _) = records("kl, bfloat16")["one"], records("kl, bfloat16")["fsdp2"]
    want, got = (torch.cat([g.flatten() for g in record["gradients"][0].values()]) for record in (one, rank))
    assert 1e-4 < float((want - got).norm() / want.norm()) < 0.05
    assert {weight.dtype for weight in rank["weights"][0].values()} == {torch.float64}, "the shards are not lowered"


def test_the_ranks_were_unequal(records):
    """What the comparison is worth: a rank without rows, twice the rows, and six times the tokens of the other."""
    rows = {case: [[len(rank["rows"][u]) for rank in records(case)["fsdp2"]] for u in range(5)] for case in CASES}
    assert [6, 0] in rows["grpo"] and [6, 3] in rows["kl"] and [3, 3] in rows["kl"]
    assert rows["supervised"] == [[2, 1]] * 5
    tokens = [[sum(map(len, rank["rows"][u])) for rank in records("kl")["fsdp2"]] for u in range(5)]
    assert any(mine > 6 * other > 0 for mine, other in tokens) and any(other > 6 * mine > 0 for mine, other in tokens)
    updates = records("kl")["one"][0]["updates"]
    assert updates[-1]["loss/clip_fraction_low"] > 0 and updates[-1]["loss/clip_fraction_high"] > 0


def test_a_failure_of_one_rank_ends_both(tmp_path):
    """In bounded time: the script kills ranks that still run after a minute, and then prints no statuses."""
    assert run("failure", tmp_path) == "[256, 256]\n"
    first, second = ((tmp_path / f"out.{rank}").read_text() for rank in (0, 1))
    assert first.endswith("RuntimeError: sampling a round failed on rank 1: RuntimeError: no verdicts today\n")
    assert second.endswith("RuntimeError: no verdicts today\n")
