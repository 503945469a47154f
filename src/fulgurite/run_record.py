"""What a run was made with: git state and package versions, beside its results."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from itertools import count, takewhile
from pathlib import Path

PACKAGES = ("fulgurite", "torch", "lightning", "transformers", "torchmetrics", "jsonargparse", "tensorboard", "vllm")


def environment() -> dict:
    """Versions of Python, the packages and the code under the current folder; null where there is none."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
        "packages": versions,
        "git": {"commit": _git("rev-parse", "HEAD"), "changes": _git("status", "--porcelain")},
    }


def write_environment(run_dir: str | Path, data: Mapping[str, Mapping]) -> Path:
    """Writes `environment.json`, or `environment.resume-N.json` where the run has one already; returns its path.

    `data`: {split or benchmark: what identifies its prompts}.
    """
    path = unused(Path(run_dir), "environment", "json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(), "data": dict(data)}, indent=2) + "\n")
    return path


def unused(folder: Path, stem: str, suffix: str) -> Path:
    """`stem.suffix`, or the first `stem.resume-N.suffix` that does not exist."""
    return next(path for path in _names(folder, stem, suffix) if not path.exists())


def latest(folder: Path, stem: str, suffix: str) -> Path | None:
    """The last of the files that `unused` has named; None if there is none."""
    return next(reversed([*takewhile(Path.exists, _names(folder, stem, suffix))]), None)


def _names(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    yield folder / f"{stem}.{suffix}"
    yield from (folder / f"{stem}.resume-{number}.{suffix}" for number in count(1))


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
