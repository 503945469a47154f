"""Transforms of a round, offered by callbacks and run in the order of their stages, whatever the order in the config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
from typing import Literal

from ..types import ConfigError, Round

STAGES = ("advantage", "reweight", "select")


class RoundTransform(ABC):
    """A callback that changes each round before its first update.

    Attributes:
        stage: `advantage` sets coefficient streams, `reweight` scales them, `select` drops rows.
        streams: the streams it sets; a stream has one owner.
        centred: its streams add up to 0 over a group, so that a mean over some of the rows may be subtracted again.
        reads: the streams that a `select` looks at.
        columns: the per-token columns it reads; computed just before it, on the rows still there.
        scope: of a `select`: `group` if it looks at each group alone, and so can run while a round is filled; else `batch`.
    """

    stage: Literal["advantage", "reweight", "select"]
    streams: tuple[str, ...] = ()
    centred: bool = False
    reads: tuple[str, ...] = ()
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


def check_streams(
    transforms: Iterable[RoundTransform], advantage: bool, advantage_streams: Iterable[str], read: Set[str], module: str
) -> None:
    """Every stream that is read has exactly one owner.

    Args:
        transforms: of all stages.
        advantage: whether the DataModule's `advantage` sets streams, namely `advantage_streams`.
        read: the streams that the losses of the module of this name read.

    Raises:
        ConfigError: a stream has two owners or none, or its owner belongs to another module.
    """
    owners = dict.fromkeys(advantage_streams if advantage else (), "data.advantage")
    for transform in transforms:
        for stream in transform.streams if transform.stage == "advantage" else ():
            if stream in owners:
                raise ConfigError(
                    f"the stream {stream!r} has two owners: {owners[stream]} and {type(transform).__name__}; "
                    "expected one. Remove a callback, or set data.advantage to null"
                )
            owners[stream] = type(transform).__name__
    if foreign := owners.keys() - read - {*advantage_streams}:
        raise ConfigError(
            f"{owners[min(foreign)]} sets the coefficient stream {min(foreign)!r}, and {module} reads "
            f"{', '.join(sorted(read))}; expected the module of its method, or another callback"
        )
    if missing := read - owners.keys():
        first = "set data.advantage" if min(missing) in advantage_streams else "take a module that does not read it"
        raise ConfigError(
            f"nothing sets the coefficient stream {min(missing)!r} that {module} reads; {first}, or add the callback that "
            "owns it"
        )
    for transform in transforms:
        if unset := {*transform.reads} - owners.keys():
            raise ConfigError(
                f"{type(transform).__name__}.stream is {min(unset)!r}, which nothing sets; expected "
                f"{' or '.join(sorted(owners))}"
            )
