"""Where the seconds of a run go: one clock, named phases, wall time and processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PHASES = ("sample", "judge", "score", "train", "sync", "check", "validate")
OTHER = "other"


class PhaseClock:
    """Adds up wall and processor seconds by phase; every second belongs to exactly one phase.

        with clock("sample"):
            ...
            with clock("sync"):  # pauses "sample"
                ...

    Only `validate` does not pause: what is sampled and judged inside it counts as validation, so that the seconds of
    `sample` are those of the rounds. Processor seconds are those of all threads of this process; its child processes
    (graders, engines) are not in them.

    Args:
        wall, cpu: sources of seconds.

    Attributes:
        listeners: called with the name of the phase, "" outside all, whenever it changes.
    """

    def __init__(self, wall: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self._sources = (wall, cpu)
        self._seconds = {name: [0.0, 0.0] for name in (*PHASES, OTHER)}
        self._open: list[str] = []
        self._charged_until = [wall(), cpu()]

    @property
    def phase(self) -> str:
        """The phase that is running, or ""."""
        return self._open[-1] if self._open else ""

    @property
    def wall(self) -> dict[str, float]:
        """Wall seconds by phase up to now; `other` is the time outside all phases."""
        return self._totals(0)

    @property
    def cpu(self) -> dict[str, float]:
        """Processor seconds by phase up to now."""
        return self._totals(1)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Runs the body as `phase`.

        Raises:
            ValueError: the phase has no name in `PHASES`.
        """
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is unknown; expected one of {', '.join(PHASES)}")
        self._charge()
        outer = self.phase
        self._open.append(phase)
        self._tell(outer)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            self._tell(phase)

    def _charge(self) -> None:
        now = [source() for source in self._sources]
        seconds = self._seconds["validate" if "validate" in self._open else self.phase or OTHER]
        for kind in (0, 1):
            seconds[kind] += now[kind] - self._charged_until[kind]
        self._charged_until = now

    def _tell(self, before: str) -> None:
        if self.phase != before:
            for listener in self.listeners:
                listener(self.phase)

    def _totals(self, kind: int) -> dict[str, float]:
        self._charge()
        return {phase: seconds[kind] for phase, seconds in self._seconds.items()}
