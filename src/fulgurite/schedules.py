"""Learning-rate schedules as factors of the peak rate."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def rate_factor(update: int, schedule: Schedule, warmup_updates: int, total_updates: float) -> float:
    """The factor for the given update (0-based): a linear rise over `warmup_updates`, then constant, or falling to 0."""
    if update < warmup_updates:
        return (update + 1) / (warmup_updates + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (update - warmup_updates) / max(1.0, total_updates - warmup_updates))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
