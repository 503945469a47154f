"""SIGTERM, by which schedulers announce that a machine is taken away."""

from __future__ import annotations

import signal
import sys
import threading

import lightning as L

from ..parallel import max_over_ranks

EXIT_CODE = 128 + signal.SIGTERM


class StopRequest:
    """Remembers a SIGTERM; takes the place of Lightning's handler, which talks to other ranks from within the handler.

    `made` is a collective: it says whether any rank was told.
    """

    def __init__(self) -> None:
        self.told = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.told = True

    def made(self, trainer: L.Trainer) -> bool:
        self.told = bool(max_over_ranks(trainer, int(self.told)))
        return self.told


def leave(trainer: L.Trainer, how: str) -> None:
    """
    Raises:
        SystemExit: with code 143.
    """
    if trainer.is_global_zero:
        print(f"stopped by SIGTERM; {how}", file=sys.stderr)
    raise SystemExit(EXIT_CODE)
