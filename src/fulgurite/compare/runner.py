"""Runs the runs of a comparison as processes of one thread, several at once, and goes on where a killed comparison was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..callbacks.checkpoint_files import checkpoints_in
from ..callbacks.evaluation import read_rows
from ..types import ConfigError

FINISHED, STOPPED, FAILED = "finished", "stopped by a guard", "failed"
OF_CODE = {0: FINISHED, 3: STOPPED}
CONFIG_ERROR = 2
PROGRAM = (sys.executable, "-m", "fulgurite")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PATIENCE_S, POLL_S = 60, 0.5


@dataclass(frozen=True)
class Job:
    """One run of `fit`.

    Args:
        name: shown.
        folder: its run_dir.
        arguments: of `fit`, without run_dir and seed.
        seed: of the run.
        needs: folders of the jobs that must have finished before.
        measure: validate the model that it starts from, too.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    seed: int
    needs: tuple[Path, ...] = ()
    measure: bool = True

    @property
    def outcome(self) -> dict | None:
        return outcome_of(self.folder)

    @property
    def asked(self) -> dict:
        return {"arguments": [*self.arguments], "seed": self.seed}


def outcome_of(folder: Path) -> dict | None:
    """{"state", "note"} of a run that has ended; None before."""
    path = folder / "outcome.json"
    return json.loads(path.read_text()) if path.exists() else None


def run_all(jobs: Sequence[Job], parallel: int, gpus: Sequence[int], tell: Callable[[str], None]) -> None:
    """Runs every job that has not ended yet, in order as far as their needs allow; those that failed are tried again, those
    whose needs end otherwise than finished are not run. In a terminal a bar shows how far all and each of them are.

    Args:
        tell: called with a line for every start and end.

    Raises:
        ConfigError: a config cannot work, or a folder holds a run of other settings.
    """
    for job in jobs:
        _check_same(job)
    waiting = [job for job in jobs if (job.outcome or {"state": FAILED})["state"] == FAILED]
    for job in waiting:
        (job.folder / "outcome.json").unlink(missing_ok=True)
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    ended = len(jobs) - len(waiting)
    bar = tqdm(total=len(jobs), initial=ended, unit="run", disable=None, leave=False)
    try:
        while waiting or running:
            for job, missing in [(job, _lost(job)) for job in waiting]:
                if missing:
                    waiting.remove(job)
                    ended += 1
                    tell(f"{ended}/{len(jobs)}  {job.name}: {_record(job, FAILED, f'{missing} has not finished')}")
            for place in {*range(parallel)} - running.keys():
                if ready := next((job for job in waiting if _ready(job)), None):
                    waiting.remove(ready)
                    tell(f"start  {ready.name}")
                    running[place] = ready, _start(ready, gpus[place % len(gpus)] if gpus else None)
            _show(bar, ended, [job for job, _ in running.values()])
            time.sleep(POLL_S)
            for place, (job, process) in [*running.items()]:
                if process.poll() is not None:
                    del running[place]
                    ended += 1
                    tell(f"{ended}/{len(jobs)}  {job.name}: {_end(job, process.returncode)}")
    finally:
        bar.close()
        _stop([process for _, process in running.values()])


def _show(bar: tqdm, ended: int, running: Iterable[Job]) -> None:
    if not bar.disable:
        bar.n = ended
        measured = [(job.name, read_rows(job.folder / "evaluation.jsonl")) for job in running]
        bar.set_postfix_str(", ".join(f"{name}: round {rows[-1]['rounds'] if rows else 0}" for name, rows in measured))


def _ready(job: Job) -> bool:
    return all(outcome_of(folder) for folder in job.needs)


def _lost(job: Job) -> Path | None:
    """What it needs that has ended and not finished."""
    return next((f for f in job.needs if (outcome_of(f) or {"state": FINISHED})["state"] != FINISHED), None)


def _check_same(job: Job) -> None:
    path = job.folder / "job.json"
    held = json.loads(path.read_text()) if path.exists() else None
    if held == job.asked or (held is None and not (job.folder / "config.yaml").exists()):
        return
    seen = f"of other settings ({_difference(held, job.asked)})" if held else "that is none of this comparison"
    raise ConfigError(f"{job.folder} holds a run {seen}; choose another run_dir, or remove that folder to run it again")


def _difference(held: dict, asked: dict) -> str:
    before, now = ({*each["arguments"], f"seed {each['seed']}"} for each in (held, asked))
    return f"{' '.join(sorted(before - now)) or 'less'} there, {' '.join(sorted(now - before)) or 'less'} asked for"


def _start(job: Job, gpu: int | None) -> subprocess.Popen:
    """Trains, from the last checkpoint where there is one."""
    begun = bool(checkpoints_in(job.folder))
    if not begun and job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "job.json").write_text(json.dumps(job.asked) + "\n")
    settings = [*job.arguments, f"--run_dir={job.folder}", f"--seed_everything={job.seed}"]
    settings += ["--evaluation.generations=true", "--trainer.enable_progress_bar=false"]
    settings += ["--trainer.num_sanity_val_steps=-1"] * job.measure + ["--ckpt_path=last"] * begun
    environment = os.environ | ONE_THREAD | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    with (job.folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [*PROGRAM, "fit", *settings],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip


def _end(job: Job, code: int) -> str:
    """Writes the outcome and says it."""
    lines = [line for line in (job.folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else "no output"
    if code == CONFIG_ERROR:
        raise ConfigError(f"{job.name} cannot run: {said.removeprefix('error: ')}; its log is {job.folder / 'log.txt'}")
    return _record(job, OF_CODE.get(code, FAILED), f"exit code {code}: {said}" if code else "")


def _record(job: Job, state: str, note: str) -> str:
    job.folder.mkdir(parents=True, exist_ok=True)
    whole = job.folder / "outcome.json.tmp"
    whole.write_text(json.dumps({"state": state, "note": note}) + "\n")
    os.replace(whole, job.folder / "outcome.json")
    return f"{state} {note}".strip()


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Ends processes with all that they started; what they saved stays."""
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
