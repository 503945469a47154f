"""What `fulgurite doctor` looks at in this process. A check returns what it saw, raises `Skipped`, or raises: it has failed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

RUN_ON_CUDA = "nothing of this project has been run on CUDA by its authors"
"""The one place that says so; the day it is false, this text and its check go."""

ENOUGH_DISK_GB, ENOUGH_MEMORY_GIB = 6, 2


class Skipped(Exception):
    """What was not checked, and why."""


def requirements() -> list[Requirement]:
    """What the installed package asks for, that of its extras too."""
    return [Requirement(line) for line in metadata.requires("fulgurite") or []]


def look_at_python() -> str:
    version, wanted = platform.python_version(), SpecifierSet(metadata.metadata("fulgurite")["Requires-Python"])
    if not wanted.contains(version, prereleases=True):
        raise ValueError(f"{version}; expected {wanted}")
    return f"{version} at {sys.executable}"


def look_at_packages() -> str:
    """Every required package is installed in the tested range."""
    seen, wrong = [], []
    for wanted in requirements():
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"no {wanted.name}; expected {wanted.specifier}")
            continue
        seen.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version}; expected {wanted.specifier}")
    if wrong:
        raise ValueError(", ".join(wrong))
    return ", ".join(seen)


def look_at_torch() -> str:
    import torch

    total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    if total != 512:
        raise ValueError(f"a product of ones has the sum {total}; expected 512")
    threads, wanted = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{torch.__version__}, {threads} thread{'s' * (threads > 1)} (OMP_NUM_THREADS {wanted})"


def look_at_cuda() -> str:
    import torch

    driver = nvidia_driver()
    if not torch.cuda.is_available():
        if driver:
            raise ValueError(f"there is an NVIDIA GPU (driver {driver}), and torch {torch.__version__} cannot use it")
        return "no GPU: everything runs on the CPU"
    if not driver:
        raise ValueError("torch sees a GPU, and nvidia-smi does not answer; tools/setup.sh looks for the GPU with it")
    devices = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(8, 8, device=f"cuda:{index}")
        if float((ones @ ones).sum()) != 512:
            raise ValueError(f"device {index} gives a wrong product of ones")
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        devices.append(f"{torch.cuda.get_device_name(index)} ({free:.1f} of {total:.1f} GiB free)")
    return f"driver {driver}, {', '.join(devices)}"


def nvidia_driver() -> str | None:
    """The version of the driver; None where there is no NVIDIA GPU, or no nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    if asked.returncode and "No devices" not in asked.stdout + asked.stderr:
        raise ValueError(f"nvidia-smi fails: {last_line(asked.stdout + asked.stderr)}")
    return None if asked.returncode else asked.stdout.split()[0]


def tell_of_cuda() -> str:
    raise Skipped(RUN_ON_CUDA)


def look_at_tensorboard() -> str:
    """An event is written and read back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="fulgurite-doctor-") as folder:
        with SummaryWriter(folder) as writer:
            writer.add_scalar("doctor", 0.5, 7)
        points = [(event.step, event.value) for event in EventAccumulator(folder).Reload().Scalars("doctor")]
    if points != [(7, 0.5)]:
        raise ValueError(f"the point (7, 0.5) was written and {points} was read")
    return f"{metadata.version('tensorboard')}, wrote and read a point"


def look_at_disk() -> str:
    here = Path.cwd()
    with tempfile.TemporaryFile(dir=here):
        pass
    free = shutil.disk_usage(here).free / 1e9
    if free < 1:
        raise ValueError(f"{free:.1f} GB free in {here}; expected at least 1 GB")
    low = "" if free >= ENOUGH_DISK_GB else f": enough for tiny models only, others want more than {ENOUGH_DISK_GB} GB"
    return f"{free:.1f} GB free in {here}{low}"


def look_at_memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        raise Skipped("this system does not say how much memory is free") from None
    sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
    free = sizes["MemAvailable"]
    if free < ENOUGH_MEMORY_GIB:
        raise ValueError(f"{free:.1f} GiB free; expected at least {ENOUGH_MEMORY_GIB} GiB")
    return f"{free:.1f} of {sizes['MemTotal']:.1f} GiB free"


def look_at_compiler() -> str:
    """vLLM's CPU build compiles a small function when it starts."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        if find_spec("vllm") is None:
            raise Skipped(f"there is no {compiler}; only vLLM needs one")
        raise ValueError(f"there is no {compiler}, and vLLM compiles a small function when it starts")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=True)
    return version.stdout.splitlines()[0]


Check = tuple[str, Callable[[], str], str]
CHECKS: tuple[Check, ...] = (
    ("Python", look_at_python, "install another Python and make .venv again: PYTHON=/path/to/python3.11 bash tools/setup.sh"),
    ("packages", look_at_packages, "pip install -e . in the folder of pyproject.toml"),
    ("torch", look_at_torch, "install torch again: pip install -e . in the folder of pyproject.toml"),
    ("CUDA", look_at_cuda, "install the NVIDIA driver, nvidia-smi and a CUDA build of torch; or --trainer.accelerator cpu"),
    ("tried on CUDA", tell_of_cuda, "look closely at the first run: the tags mismatch/ and memory/"),
    ("TensorBoard", look_at_tensorboard, "pip install -e . in the folder of pyproject.toml; check that the folder for "
     "temporary files can be written"),
    ("disk", look_at_disk, "go to a folder with room that can be written, and give --run_dir there"),
    ("memory", look_at_memory, "end other programs"),
    ("C++ compiler", look_at_compiler, "install g++, for example with apt-get install g++, or name another one in CXX"),
)  # fmt: skip


def told_by(error: Exception) -> str:
    """An error in one line; the checks themselves raise a plain ValueError."""
    text = " ".join(str(error).split())[:300] or "no message"
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
