"""Runs work in forked children, so that a test can kill a run, or have two processes, and pay for the imports once."""

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def run_forked(
    work: Callable[[], object],
    folder: Path,
    ranks: int = 1,
    limit_s: float = 100,
    kill_after_s: float | None = None,
    **settings: object,
) -> list[int]:
    """Runs `work()` in `folder` with the settings in the environment (prefixed T_); returns the exit status of each rank.
    Those that still run after `kill_after_s` are killed.

    Output goes to out.<rank>. Two ranks form a process group of their own that Lightning takes up (LOCAL_RANK, MASTER_PORT).

    Raises:
        TimeoutError: a rank still ran at the limit; all are killed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _child(work, folder, rank, ranks, port, settings)
        children.append(pid)
    statuses: list[int | None] = [None] * ranks
    begin = time.monotonic()
    while None in statuses:
        for rank, pid in enumerate(children):
            if statuses[rank] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[rank] = status
        if kill_after_s is not None and time.monotonic() - begin > kill_after_s:
            kill_after_s = None
            for pid, status in zip(children, statuses, strict=True):
                if status is None:
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() - begin > limit_s:
            for pid, status in zip(children, statuses, strict=True):
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            raise TimeoutError(
                f"ranks {[r for r, s in enumerate(statuses) if s is None]} still ran after {limit_s} s in {folder}"
            )
        time.sleep(0.005)
    return statuses


def _child(work, folder: Path, rank: int, ranks: int, port: int, settings: dict) -> None:
    code = 1
    try:
        os.chdir(folder)
        os.environ.update({f"T_{key}": str(value) for key, value in settings.items()})
        if ranks > 1:
            os.environ.update(
                LOCAL_RANK=str(rank),
                NODE_RANK="0",
                WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        out = os.open(f"out.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.enable()  # a crash tells where
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
