"""A saved model is loaded in shards: the same weights, and no process holds all of them. See sharded_loading.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fulgurite.parallel import FSDP2Strategy

pytestmark = pytest.mark.xdist_group("sharded loading")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("loading")
    script = Path(__file__).with_name("sharded_loading.py")
    ran = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=200)
    assert ran.stdout.splitlines() == ["shards [0, 0]", "whole [0, 0]"], ran.stderr + (folder / "shards" / "out.0").read_text()
    return {way: [json.loads(f.read_text()) for f in sorted(folder.glob(f"{way}/*.json"))] for way in ("shards", "whole")}


def test_the_weights_are_those_of_the_folder(records):
    for record in records["shards"] + records["whole"]:
        assert record["same"] and record["tied"] == 1 and record["fingerprints"] == 1
        assert record["logprobs"] == records["whole"][0]["logprobs"]


def test_no_process_holds_the_whole_model(records):
    whole = 216  # MiB in float32
    assert all(record["peak"] < 0.7 * whole for record in records["shards"])
    assert all(record["peak"] > 0.95 * whole for record in records["whole"])


@pytest.mark.parametrize("offload", [False, True])
def test_offloaded_weights_stay_where_they_are_and_buffers_move(offload, monkeypatch):
    """Lightning moves the whole model; the meta device stands for a GPU."""
    monkeypatch.setattr(FSDP2Strategy, "root_device", torch.device("meta"))
    strategy = FSDP2Strategy(cpu_offload=offload)
    strategy.model = torch.nn.BatchNorm1d(2)
    strategy.model_to_device()
    assert strategy.model.weight.device.type == ("cpu" if offload else "meta")
    assert strategy.model.running_mean.device.type == "meta"
