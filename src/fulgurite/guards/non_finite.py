"""Guard: update after update is skipped because its loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping

from . import warn_then_stop


def check_non_finite(skipped: bool, update: Mapping[str, float], max_skipped_updates: int, streak: int) -> int:
    """The new number of skipped updates in a row. `update` holds the loss and the gradient norms, `grad_norm/<model>`.

    Raises:
        GuardError: that number has reached `max_skipped_updates`.
    """
    if not skipped:
        return 0
    seen = {name: value for name, value in update.items() if name == "loss" or name.startswith("grad_norm/")}
    return warn_then_stop(
        f"the update was skipped, its loss or gradient is not finite: {seen} (update {streak + 1} in a row); expected "
        "finite numbers. Lower the learning rate or max_grad_norm, take trainer.precision bf16-mixed or 32-true "
        "instead of 16-bit floats, look at the round's completions, or set guards.max_skipped_updates to 0 to go on",
        streak + 1,
        max_skipped_updates,
    )
