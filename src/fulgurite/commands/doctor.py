"""fulgurite doctor: what this machine has of what a run needs, a line per check, with a remedy where something is missing."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from .checks import CHECKS, Skipped, last_line, told_by

VLLM_LIMIT_S = 180
VLLM_STEPS = ("vLLM import", "vLLM capabilities", "vLLM engine start", "vLLM weight update")


@dataclass(frozen=True)
class Finding:
    """A line of the report; `status` is `pass`, `FAIL` or `skip`."""

    status: str
    name: str
    seen: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status}  {self.name:<20} {self.seen}{f'  -> {self.remedy}' if self.remedy else ''}"


def findings() -> Iterator[Finding]:
    """What was found, check by check; a check that raises has failed."""
    for name, look, remedy in CHECKS:
        try:
            yield Finding("pass", name, look())
        except Skipped as why:
            yield Finding("skip", name, str(why), remedy)
        except Exception as error:
            yield Finding("FAIL", name, told_by(error), remedy)
    try:
        yield from try_vllm()
    except Exception as error:
        yield Finding("FAIL", "vLLM", told_by(error), "leave data.init_args.engine out, which takes the embedded engine")


def try_vllm() -> Iterator[Finding]:
    """vLLM in a process of its own, which may crash or hang: see `vllm_trial`."""
    from ..engines.vllm_engine import INSTALL

    if find_spec("vllm") is None:
        yield Finding("skip", "vLLM", "not installed; completions come from the embedded engine", INSTALL)
        return
    seen, cause = run_trial()
    for name, text in zip(VLLM_STEPS, seen, strict=False):
        yield Finding("pass", name, text)
    if cause:
        first, *others = VLLM_STEPS[len(seen) :]
        remedy = f"leave data.init_args.engine out, which takes the embedded engine, or install vLLM again {INSTALL}"
        yield Finding("FAIL", first, cause, remedy)
        for name in others:
            yield Finding("skip", name, f"not reached: {first} failed")


def run_trial() -> tuple[list[str], str]:
    """What the steps of `vllm_trial` that worked had to say, and why the next one did not; "" where all did."""
    command = [sys.executable, "-P", "-m", "fulgurite.commands.vllm_trial"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    child = subprocess.Popen(command, **pipes, env={"VLLM_LOGGING_LEVEL": "ERROR", **os.environ}, start_new_session=True)
    cause = ""
    try:
        out, err = child.communicate(timeout=VLLM_LIMIT_S)
    except BaseException as stopped:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        if not isinstance(stopped, subprocess.TimeoutExpired):
            raise
        cause = f"no answer within {VLLM_LIMIT_S} s"
    steps = [json.loads(line) for line in out.splitlines()]
    seen = [step["seen"] for step in steps if "seen" in step]
    if len(seen) == len(VLLM_STEPS):
        return seen, ""
    told = next((step["error"] for step in steps if "error" in step), None)
    return seen, cause or told or last_line(err) or f"the process ended with exit code {child.returncode}"


def run(argv: list[str]) -> None:
    """Prints the findings. Exit code 1: something failed."""
    parser = argparse.ArgumentParser("fulgurite doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options, found = parser.parse_args(argv[1:]), []
    for finding in findings():
        found.append(finding)
        if not options.json:
            print(finding, flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print(", ".join(f"{sum(f.status == kind for f in found)} {kind}" for kind in ("pass", "FAIL", "skip")))
    raise SystemExit(any(f.status == "FAIL" for f in found))
