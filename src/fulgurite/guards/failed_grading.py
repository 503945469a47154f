"""Guard: the grader or a reward function fails on many completions, and what is learned from them is no verdict."""

from __future__ import annotations

from ..types import Round
from . import warn_then_stop


def failed_gradings(sampled: Round) -> tuple[int, str]:
    """(completions on which the grader or a reward failed: was killed or raised, the reason of the first)."""
    failures = [verdict.failure for verdict in sampled.verdicts if verdict.failure]
    return len(failures), failures[0] if failures else ""


def check_failed_grading(failed: int, completions: int, reason: str, max_failed: float, streak: int, patience: int) -> int:
    """The new number of rounds in a row with more than the share `max_failed` failed; an empty round says nothing.

    Args:
        reason: of one of the failures; those of another rank may have none.

    Raises:
        GuardError: that number has reached `patience`.
    """
    if not completions:
        return streak
    if failed / completions <= max_failed:
        return 0
    return warn_then_stop(
        f"the grader or a reward failed on {failed} of {completions} completions of this round (round {streak + 1} in a row), "
        f"for example: {reason or 'see rounds/ in the run folder'}; expected a share of at most {max_failed}. Correct the "
        "reward function, raise the grader's time_limit_s or memory_limit_mib, or set guards.max_failed to 1 to allow it",
        streak + 1,
        patience,
    )
