"""Guard: the engine that writes the completions and the trainer that learns from them give their tokens different
log-probabilities, so the policy that sampled is not the one that the loss takes it for."""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from . import warn_then_stop

if TYPE_CHECKING:
    import lightning as L
    import torch

PATIENCE_UPDATES = 3


def max_gap_of(chosen: float | None, trainer: L.Trainer, dtype: torch.dtype) -> float:
    """The largest sound mean gap in nats: `chosen` or, by default, 0.001 where trainer and engine (`dtype` of its weights)
    compute in float32 at least, and 0.1 where one of them rounds to 16 bits."""
    if chosen is not None:
        return chosen
    rounded = trainer.precision != "32-true" or getattr(trainer.strategy, "gather_dtype", "float32") != "float32"
    return 0.1 if rounded or dtype.itemsize < 4 else 0.001


def check_engine_gap(gap_mean: float, max_gap: float, streak: int, patience: int) -> int:
    """The new number of updates in a row whose mean gap |log p trainer - log p engine|, in nats over the tokens trained
    on, is above `max_gap` or is not a number; an infinite `max_gap` allows everything.

    Raises:
        GuardError: that number has reached `patience`.
    """
    if gap_mean <= max_gap or isinf(max_gap):
        return 0
    return warn_then_stop(
        f"the log-probabilities of the engine and of the trainer are {gap_mean:.3g} nats apart in the mean over the tokens of "
        f"an update (update {streak + 1} in a row); expected at most {max_gap}. The engine has stale weights, another "
        "temperature, log-probabilities after a top_p or top_k cut, or less precision: check its settings, correct for the "
        "gap with model.init_args.importance, and raise guards.max_gap_nats to allow it",
        streak + 1,
        patience,
    )
