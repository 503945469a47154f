"""Intervals for accuracies."""

from __future__ import annotations

import math


def wilson_interval(share: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval, 95% by default, for a share among `count` independent prompts.

    With several samples of a prompt `count` stays the number of prompts: the interval is then wider than need be, never
    narrower.
    """
    if not count:
        return 0.0, 1.0
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
