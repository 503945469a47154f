"""Guard: the weights do not move. A bfloat16 weight has 8 significant bits, so an update below 1/512 of the weight
rounds away: the loss and the gradient look well, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import warn_then_stop

ELEMENTS_WATCHED = 4096
PATIENCE_UPDATES = 3


@dataclass(frozen=True)
class WatchedSlice:
    """The first elements of a parameter's local tensor before an update, and which of them had a gradient."""

    group: str
    parameter: Tensor
    before: Tensor
    active: Tensor


def watch(optimizer: torch.optim.Optimizer) -> list[WatchedSlice]:
    """To be called when gradients are there, before the step; groups with a learning rate of 0 are left out."""
    return [
        WatchedSlice(str(group.get("name", i)), p, _slice(p).clone(), _slice(p.grad) != 0)
        for i, group in enumerate(optimizer.param_groups)
        if float(group["lr"]) > 0
        for p in group["params"]
        if p.grad is not None
    ]


def count_moved(watched: list[WatchedSlice]) -> dict[str, Tensor]:
    """{parameter group: (2,) float64: weights that changed, weights with a gradient}, of what was watched."""
    counts: dict[str, Tensor] = {}
    for piece in watched:
        changed = (_slice(piece.parameter) != piece.before) & piece.active
        count = torch.stack([changed.sum(), piece.active.sum()]).double()
        counts[piece.group] = counts[piece.group] + count if piece.group in counts else count
    return counts


def check_weights_move(counts: Mapping[str, tuple[float, float]], min_moved: float, streak: int) -> int:
    """The new number of updates in a row in which some parameter group moved less than the share `min_moved` of its
    weights that have a gradient. `counts`: {group: (moved, with a gradient)}; no gradient at all says nothing.

    Raises:
        GuardError: that number has reached 3.
    """
    shares = {group: moved / active for group, (moved, active) in counts.items() if active}
    if not shares:
        return streak
    group = min(shares, key=shares.__getitem__)
    if shares[group] >= min_moved:
        return 0
    return warn_then_stop(
        f"only {counts[group][0]:.0f} of {counts[group][1]:.0f} sampled weights of {group!r} with a gradient changed "
        f"in an update (update {streak + 1} in a row); expected a share of at least {min_moved}: updates round away. "
        "Keep float32 weights (trainer.precision bf16-mixed, not bf16-true), raise the learning rate, or set "
        "guards.min_moved to 0 to allow it",
        streak + 1,
        PATIENCE_UPDATES,
    )


def _slice(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach().reshape(-1)[:ELEMENTS_WATCHED]
