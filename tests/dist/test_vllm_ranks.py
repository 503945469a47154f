"""Two processes under FSDP2, each with its own vLLM, take the same updates as one, and stop together. See vllm_ranks.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import require_vllm_cpu

require_vllm_cpu()


def run(case: str, folder: Path) -> str:
    script = Path(__file__).with_name("vllm_ranks.py")
    return subprocess.run([sys.executable, script, case, folder], capture_output=True, text=True, check=True).stdout


def test_two_processes_take_the_same_updates(tmp_path):
    statuses = run("same", tmp_path)
    ends = "\n".join(file.read_text()[-500:] for file in tmp_path.glob("*/out.*"))
    assert statuses.splitlines() == ["one [0]", "fsdp2 [0, 0]"], f"{statuses}{ends}"
    one = torch.load(tmp_path / "one" / "record.0.pt")
    ranks = [torch.load(tmp_path / "fsdp2" / f"record.{rank}.pt") for rank in (0, 1)]
    assert len(one["rows"]) == 3 and [len(rank["rows"][0]) for rank in ranks] == [9, 6]
    for whole, mine, other in zip(one["rows"], *(rank["rows"] for rank in ranks), strict=True):
        assert sorted(whole) == sorted(mine + other)
    for rank in ranks:
        assert rank["sampled_tokens"] == one["sampled_tokens"]
        for want, got in zip(one["updates"], rank["updates"], strict=True):
            assert got["grad_norm/policy"] == pytest.approx(want["grad_norm/policy"], rel=1e-4)
            assert got["mismatch/logprob_gap_max_nats"] < 1e-5


def test_one_stale_engine_stops_both_processes(tmp_path):
    assert run("stale", tmp_path) == "[256, 256]\n"
    first, second = ((tmp_path / f"out.{rank}").read_text() for rank in (0, 1))
    assert "failed on rank 1: GuardError" in first.splitlines()[-1]
    assert second.splitlines()[-1].startswith("fulgurite.guards.GuardError: ") and "not the weights" in second.splitlines()[-1]
