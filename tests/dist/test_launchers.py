"""Runs that are started by the command line or by torchrun: two launchers as on two machines, and a rank that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
WITHIN_S = 20


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def quick_start(run: Path) -> list[str]:
    """The supervised step of the quick start, two rounds of it."""
    return [
        "fit", "--config", str(ROOT / "configs" / "quickstart" / "sft.yaml"), "--run_dir", str(run),
        "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


def test_two_launchers_on_one_machine_train_the_quick_start_as_one_process_does(tmp_path):
    port = str(free_port())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", port]
    options = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "fsdp2"]
    nodes = [
        subprocess.Popen(
            [*launch, "--node_rank", str(i), "-m", "fulgurite", *quick_start(tmp_path / "two"), *options],
            stdout=subprocess.DEVNULL, stderr=(tmp_path / f"err.{i}").open("w"),
        )
        for i in range(2)
    ]  # fmt: skip
    one = subprocess.run([sys.executable, "-m", "fulgurite", *quick_start(tmp_path / "one")], capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-1000:]
    codes = [node.wait(200) for node in nodes]
    assert codes == [0, 0], (tmp_path / "err.0").read_text()[-1500:] + (tmp_path / "err.1").read_text()[-1500:]
    assert [row["updates"] for row in rows(tmp_path / "two")] == [row["updates"] for row in rows(tmp_path / "one")] == [5, 10]
    weights, want = (load_file(tmp_path / way / "policy" / "model.safetensors") for way in ("two", "one"))
    assert max(float((weights[name] - want[name]).abs().max()) for name in want) < 2e-3  # Adam, float32, ten updates
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["trainer"]["num_nodes"] == 2


def ranks_of(main: subprocess.Popen, run: Path) -> int:
    """The process of rank 1, once the run trains."""
    begin = time.monotonic()
    while not (run / "evaluation.jsonl").exists():
        assert main.poll() is None and time.monotonic() - begin < 120
        time.sleep(0.1)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    (rank,) = [int(pid) for pid in children if "fulgurite" in Path(f"/proc/{pid}/cmdline").read_text()]
    return rank


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_stops_the_others_in_time(dies, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2", "--trainer.max_epochs", "100000"]
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "fulgurite", *quick_start(tmp_path / "run"), *options]
    main = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        other = ranks_of(main, tmp_path / "run")
        os.kill((main.pid, other)[dies], signal.SIGKILL)
        begin = time.monotonic()
        while not (is_gone(other) and is_gone(main.pid)):
            assert time.monotonic() - begin < WITHIN_S, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.1)
        assert main.wait(1) != 0
        text = (tmp_path / "log").read_text()
        named = ("rank 1 (exit code -9) ended", "[rank: 1] Child process") if dies else ("error: rank 0 ended",)
        assert any(words in text for words in named), text[-1000:]
    finally:
        os.killpg(main.pid, signal.SIGKILL) if main.poll() is None else None
