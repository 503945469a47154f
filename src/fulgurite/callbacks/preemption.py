"""SIGTERM, by which schedulers announce that a machine is taken away, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading

import lightning as L

from ..parallel import max_over_ranks


class StopRequest:
    """Remembers a SIGTERM or the first SIGINT (Ctrl-C), until `withdraw`; the second SIGINT interrupts at once.

    Takes the place of Lightning's handler of SIGTERM, which talks to other ranks from within the handler. `made` is a
    collective: it says whether any rank was told.
    """

    def __init__(self) -> None:
        self.told = 0
        """The signal's number."""
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in the background of a script: so it stays
            taken = (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGINT)
            self.before = {number: signal.signal(number, self._note) for number in taken}

    def withdraw(self) -> None:
        """Gives both signals back to those who had them before."""
        while self.before:
            number, handler = self.before.popitem()
            signal.signal(number, handler or signal.SIG_DFL)  # None is one that was not set from Python

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if self.told:
                signal.default_int_handler(number, frame)
            print("\nstops and saves after this update, or once this round is there; Ctrl-C again stops now", file=sys.stderr)
        self.told = number

    def made(self, trainer: L.Trainer) -> bool:
        self.told = max_over_ranks(trainer, int(self.told))
        return bool(self.told)

    def leave(self, trainer: L.Trainer, how: str) -> None:
        """
        Raises:
            SystemExit: with code 143 after SIGTERM, 130 after SIGINT.
        """
        if trainer.is_global_zero:
            print(f"\nstopped by {signal.Signals(self.told).name}; {how}", file=sys.stderr)
        raise SystemExit(128 + self.told)
