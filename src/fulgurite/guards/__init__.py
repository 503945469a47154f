"""Guards: one file each, a check with its error text beside it. `docs/guards.md` has a row for each."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn


class GuardError(RuntimeError):
    """Training would go on but be wrong. The message says what was seen, what was expected and what to change."""


def warn_then_stop(message: str, streak: int, patience: int) -> int:
    """For an observation that was bad `streak` times in a row, this one included: warns at the first; returns `streak`.

    Raises:
        GuardError: `streak` has reached `patience`; with patience 0 never.
    """
    if patience and streak >= patience:
        raise GuardError(message)
    if streak == 1:
        rank_zero_warn(message)
    return streak
