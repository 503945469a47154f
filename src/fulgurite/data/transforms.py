"""Transforms of a round, offered by callbacks and run in the order of their stages, whatever the order in the config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

from ..types import ConfigError, Round

STAGES = ("advantage", "reweight", "select")


class RoundTransform(ABC):
    """A callback that changes each round before its first update.

    Attributes:
        stage: `advantage` sets coefficient streams, `reweight` scales them, `select` drops rows.
        streams: the streams it sets; a stream has one owner.
        columns: the per-token columns it reads; computed just before it, on the rows still there.
        scope: of a `select`: `group` if it looks at each group alone, and so can run while a round is filled; else `batch`.
    """

    stage: Literal["advantage", "reweight", "select"]
    streams: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    scope: Literal["group", "batch"] = "batch"

    def rows_left_of(self, group_size: int) -> int | None:
        """Of a `select` of scope `group`: how many rows it leaves of every group of this size; None where that varies."""
        return None

    @abstractmethod
    def transform(self, held: Round) -> Round:
        """The changed round. Pure: the same round gives the same result on every call."""


def find_transforms(callbacks: Iterable[object]) -> list[RoundTransform]:
    """The transforms among the callbacks, by stage; those of one stage in the order given."""
    return sorted((c for c in callbacks if isinstance(c, RoundTransform)), key=lambda c: STAGES.index(c.stage))


def check_owners(transforms: Iterable[RoundTransform], base_streams: Iterable[str]) -> None:
    """Refuses a coefficient stream with two owners.

    Args:
        transforms: of all stages.
        base_streams: the streams that the DataModule's `advantage` sets.
    """
    owners = dict.fromkeys(base_streams, "data.advantage")
    for transform in transforms:
        if transform.stage != "advantage":
            continue
        for stream in transform.streams:
            if stream in owners:
                raise ConfigError(
                    f"the stream {stream!r} has two owners: {owners[stream]} and {type(transform).__name__}; "
                    "expected one. Remove a callback, or set data.advantage to null"
                )
            owners[stream] = type(transform).__name__
