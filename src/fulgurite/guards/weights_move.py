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
class Watched:
    """The first elements of the local tensors of a parameter group before an update, and which of them had a gradient."""

    group: str
    parameters: list[Tensor]
    before: Tensor
    active: Tensor


def watch(optimizer: torch.optim.Optimizer) -> list[Watched]:
    """To be called when gradients are there, before the step; groups with a learning rate of 0 are left out."""
    watched = []
    for i, group in enumerate(optimizer.param_groups):
        parameters = [p for p in group["params"] if p.grad is not None]
        if float(group["lr"]) > 0 and parameters:
            active = _first([p.grad for p in parameters]) != 0
            watched.append(Watched(str(group.get("name", i)), parameters, _first(parameters), active))
    return watched


def count_moved(watched: list[Watched]) -> dict[str, Tensor]:
    """{parameter group: (2,) float64: weights that changed, weights with a gradient}, of what was watched."""
    counts: dict[str, Tensor] = {}
    for piece in watched:
        changed = (_first(piece.parameters) != piece.before) & piece.active
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


def _first(tensors: list[Tensor]) -> Tensor:
    """A copy of the first elements of each, one after the other."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return torch.cat([tensor.detach().reshape(-1)[:ELEMENTS_WATCHED] for tensor in local])
