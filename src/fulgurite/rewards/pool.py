"""A pool of killable processes for functions that read hostile text.

Every worker is a fresh interpreter (never a fork, which would copy the trainer's memory and locks) that imports the function's
module and nothing else. Calls and results travel as JSON lines: nothing a worker sends is ever unpickled.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .worker import LOAD, OUT_OF_MEMORY, START_LIMIT_S

CALLS_AHEAD = 16
LONGEST_REPLY = 2**24
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")


class Returned(NamedTuple):
    """What became of a call: its value, or why there is none. `killed`: the worker had to be replaced."""

    value: Any = None
    failure: str = ""
    killed: bool = False


class GraderPool:
    """Runs calls of a function over `workers` processes.

    Args:
        workers: processes.
        time_limit_s: wall-clock seconds a call may take; then its worker is killed and replaced.
        memory_limit_mib: address space of a worker.

    One caller at a time. Close it, or use it as a context manager; workers end by themselves when the parent dies.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, workers: int = 2, time_limit_s: float = 5.0, memory_limit_mib: int = 1024) -> None:
        for name, value in (("workers", workers), ("time_limit_s", time_limit_s), ("memory_limit_mib", memory_limit_mib)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected more than 0")
        self.time_limit_s, self.memory_limit_mib = time_limit_s, memory_limit_mib
        self.kills = 0
        self._function = ""
        self._workers = [self._start() for _ in range(workers)]
        self._close = weakref.finalize(self, _end, self._workers)

    def map(self, function: str, calls: Iterable[Sequence | Mapping]) -> list[Returned]:
        """One result per call, in the order of the calls.

        Args:
            function: `package.module:name`; arguments and value must be JSON.
            calls: the arguments of each call, in order or by name.

        Raises:
            RuntimeError: the pool is closed, or workers cannot load the function.
        """
        if not self._close.alive:
            raise RuntimeError("the pool is closed; make a new GraderPool")
        calls = [dict(call) if isinstance(call, Mapping) else list(call) for call in calls]
        results: list[Returned | None] = [None] * len(calls)
        waiting = deque(range(len(calls)))
        self._function = function
        for place, worker in enumerate(self._workers):
            if worker.dead():
                worker = self._replace(place)
            if worker.function != function:
                worker.load(function)
        try:
            while waiting or any(worker.taken for worker in self._workers):
                for worker in self._workers:
                    worker.top_up(waiting, calls)
                self._exchange()
                for place, worker in enumerate(self._workers):
                    self._collect(place, worker, results, waiting)
        finally:
            for place, worker in enumerate(self._workers):
                if worker.taken:
                    self._replace(place)
        return results

    def close(self) -> None:
        """Ends the workers; twice is harmless."""
        self._close()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> Worker:
        return Worker(self.time_limit_s, self.memory_limit_mib)

    def _replace(self, place: int) -> Worker:
        self._workers[place].kill()
        self._workers[place] = self._start()
        return self._workers[place]

    def _exchange(self) -> None:
        """Waits until a worker can be read or written or one has run out of time, and moves what can be moved."""
        with selectors.DefaultSelector() as ready:
            for worker in self._workers:
                if worker.taken:
                    ready.register(worker.replies, selectors.EVENT_READ, worker.read)
                if worker.unsent:
                    ready.register(worker.requests, selectors.EVENT_WRITE, worker.write)
            deadlines = [worker.deadline for worker in self._workers if worker.taken]
            for key, _ in ready.select(max(0.0, min(deadlines) - time.monotonic())):
                key.data()

    def _collect(self, place: int, worker: Worker, results: list, waiting: deque) -> None:
        """Takes what a worker has answered; a worker that died, spoke nonsense or ran out of time is replaced."""
        late = time.monotonic() >= worker.deadline
        if late:
            worker.read()  # an answer that is in the pipe is in time: it is this process that was slow
        try:
            for number, worked, value in worker.answers():
                if number != LOAD:
                    results[number] = Returned(value) if worked else Returned(failure=value)
                elif not worked:
                    worker.function = ""
                    raise RuntimeError(f"workers cannot load {self._function}: {value}")
            why = worker.ended() or (f"no answer within {self.time_limit_s:g} s" if time.monotonic() >= worker.deadline else "")
        except ValueError as error:
            why = f"a worker's reply cannot be read ({error})"
        if not why or not worker.taken:
            return
        self.kills += 1
        guilty, *others = worker.taken
        if guilty == LOAD:
            raise RuntimeError(f"workers cannot load {self._function}: {why}")
        results[guilty] = Returned(failure=why, killed=True)
        waiting.extendleft(reversed(others))
        worker.taken.clear()
        self._replace(place).load(self._function)


class Worker:
    """A process, the bytes on their way to it and from it, and the numbers of the calls it holds, oldest first."""

    def __init__(self, time_limit_s: float, memory_limit_mib: int) -> None:
        source = str(Path(__file__).parents[2])
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (source, environment.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-B", "-m", "fulgurite.rewards.worker", str(time_limit_s), str(memory_limit_mib)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
        self.process = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
        self.requests, self.replies = self.process.stdin, self.process.stdout
        for pipe in (self.requests, self.replies):
            os.set_blocking(pipe.fileno(), False)
        self.time_limit_s, self.memory_limit_mib = time_limit_s, memory_limit_mib
        self.taken: deque[int] = deque()
        self.unsent, self.received, self.at_end = bytearray(), bytearray(), False
        self.deadline, self.function = float("inf"), ""

    def load(self, function: str) -> None:
        self.function = function
        self._send(LOAD, [function, [folder or os.getcwd() for folder in sys.path]])

    def top_up(self, waiting: deque[int], calls: list[list | dict]) -> None:
        """Hands over waiting calls, a few ahead so that the worker need not wait for this process."""
        while waiting and len(self.taken) < CALLS_AHEAD and LOAD not in self.taken and len(self.unsent) < 2**16:
            number = waiting.popleft()
            self._send(number, calls[number])

    def _send(self, number: int, call: list | dict) -> None:
        self.unsent += json.dumps([number, call]).encode() + b"\n"
        self.taken.append(number)
        if len(self.taken) == 1:
            self._start_clock()

    def _start_clock(self) -> None:
        """The oldest call has the worker to itself from now on; starting an interpreter has a limit of its own."""
        limit = START_LIMIT_S if self.taken and self.taken[0] == LOAD else self.time_limit_s
        self.deadline = time.monotonic() + limit if self.taken else float("inf")

    def write(self) -> None:
        try:
            del self.unsent[: os.write(self.requests.fileno(), self.unsent[: 2**16])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.unsent.clear()

    def read(self) -> None:
        try:
            while chunk := os.read(self.replies.fileno(), 2**16):
                self.received += chunk
            self.at_end = True
        except BlockingIOError:
            pass

    def answers(self) -> Iterable[tuple[int, bool, Any]]:
        """Complete replies, each to the oldest call; ValueError where one is not."""
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        if len(rest) > LONGEST_REPLY:
            raise ValueError(f"longer than {LONGEST_REPLY} bytes")
        for line in lines:
            try:
                number, worked, value = json.loads(line)
            except (TypeError, RecursionError) as error:
                raise ValueError(str(error)) from None
            if not self.taken or number != self.taken[0]:
                raise ValueError(f"it answers call {number!r}")
            self.taken.popleft()
            self._start_clock()
            yield number, bool(worked), value

    def ended(self) -> str:
        """Why the process ended; "" while its pipe is open."""
        if not self.at_end:
            return ""
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "the worker closed its pipe"
        if code == OUT_OF_MEMORY:
            return f"more than {self.memory_limit_mib} MiB of memory"
        return f"the worker ended with exit code {code}"

    def dead(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        if self.process.poll() is None:  # in a fork of the owner it is not None: no child of that process
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.requests, self.replies):
            pipe.close()


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
