"""Folders of shards: whole ones are taken, torn ones are seen, and what could run is refused without running it."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from fulgurite.callbacks.checkpoint_files import checkpoint_at, fault_of
from fulgurite.types import ConfigError
from test_cli import TINY_RUN

pytestmark = pytest.mark.xdist_group("checkpoint files")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "run.yaml").write_text(TINY_RUN.replace("RUN", str(folder / "run")))
    options = ["--config", str(folder / "run.yaml"), "--trainer.strategy", "fsdp2_sharded", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "fulgurite", "fit", *options]
    subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, timeout=200, check=True)
    return folder / "run" / "checkpoints"


@pytest.fixture
def run(saved, tmp_path) -> Path:
    copytree(saved, tmp_path / "checkpoints", copy_function=os.link)
    for path in (tmp_path / "checkpoints").iterdir():
        number = path.name[6:12]
        os.utime(path, (int(number), int(number)))
    return tmp_path


def newest(run: Path) -> Path:
    return run / "checkpoints" / "round-000002-update-000.ckpt"


def rewritten(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_whole_folder_is_taken(run):
    assert checkpoint_at(run, "last") == newest(run) and fault_of(newest(run)) is None


@pytest.mark.parametrize(
    ("file", "keep", "fault"),
    [
        ("__1_0.distcp", 0.5, "lacks a part of __1_0.distcp"),
        ("__0_0.distcp", None, "lacks a part of __0_0.distcp"),
        ("meta.pt", 0.5, "is cut short"),
        ("meta.pt", None, "has no meta.pt"),
        (".metadata", 0.5, "has a .metadata that cannot be read"),
        (".metadata", None, "has no .metadata"),
    ],
)
def test_a_torn_folder_is_seen_and_the_one_before_taken(run, file, keep, fault):
    path = newest(run) / file
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[: int(keep * len(content))])
    os.utime(newest(run), (2, 2))
    with pytest.warns(UserWarning, match=f"round-000002.*{fault}.*; the checkpoint before it is taken"):
        assert checkpoint_at(run, "last") == run / "checkpoints" / "round-000001-update-000.ckpt"
    with pytest.raises(ConfigError, match=fault):
        checkpoint_at(run, str(newest(run)))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ran",)


def test_a_description_that_would_run_something_is_refused(run, tmp_path, monkeypatch):
    target = tmp_path / "ran"
    monkeypatch.setattr(Hostile, "__reduce__", lambda self: (os.mkdir, (str(target),)))
    rewritten(newest(run) / ".metadata", pickle.dumps(Hostile()))
    assert "cannot be read (it names posix.mkdir)" in fault_of(newest(run)) and not target.exists()
    dotted = b"\x80\x04\x8c\x2atorch.distributed.checkpoint.filesystem\x8c\x09os.system\x93."
    rewritten(newest(run) / ".metadata", dotted.replace(b"\x2a", bytes([39]), 1))
    assert "it names torch.distributed.checkpoint.filesystem.os.system" in fault_of(newest(run))
