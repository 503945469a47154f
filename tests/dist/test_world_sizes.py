"""A checkpoint of the end of a round, one file or shards, goes on with any number of processes. See world_sizes.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    script = Path(__file__).with_name("world_sizes.py")
    ran = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280)
    statuses = ran.stdout.splitlines()
    assert len(statuses) == 16 and all(line.endswith(("[0]", "[0, 0]")) for line in statuses), ran.stdout + ran.stderr
    ends = {path.parent.name: torch.load(path) for path in tmp_path.glob("*/end.pt")}
    assert len(ends) == 8
    for way, end in ends.items():
        assert (end["updates"], end["tokens"]) == (8, ends["1"]["tokens"]), way
        for name, weight in ends["1"]["weights"].items():
            assert end["weights"][name].numpy() == pytest.approx(weight.numpy(), abs=1e-9), (way, name)
