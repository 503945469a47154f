"""Guard: a loader ends before the last minibatch of its round; Lightning would take the rest for trained."""

from __future__ import annotations

from . import GuardError


def check_whole_round(minibatches: int, expected: int) -> None:
    """
    Raises:
        GuardError: the loader has ended and gave fewer minibatches than its length.
    """
    if minibatches < expected:
        raise GuardError(
            f"the loader ended after {minibatches} of {expected} minibatches of the round; expected all of them, an empty one "
            "where nothing is left to train on: look at `minibatches` of the DataModule"
        )
