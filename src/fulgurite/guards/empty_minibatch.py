"""Guard: every minibatch of a round is empty, so the round costs time and trains nothing."""

from __future__ import annotations

from . import warn_then_stop


def check_empty_round(filled: int, minibatches: int, max_empty_rounds: int, streak: int) -> int:
    """The new number of rounds in a row without a filled minibatch.

    Raises:
        GuardError: that number has reached `max_empty_rounds`.
    """
    if filled:
        return 0
    return warn_then_stop(
        f"all {minibatches} minibatches of this round were empty (round {streak + 1} in a row): no weight was updated; "
        "expected rows that are left after selection. Loosen the selection, sample more prompts or completions, or "
        "take prompts that the model solves sometimes",
        streak + 1,
        max_empty_rounds,
    )
