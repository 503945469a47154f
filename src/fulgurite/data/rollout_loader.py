"""The minibatches of a round: sized, lazy, of constant length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..guards.short_round import check_whole_round
from ..types import Minibatch

if TYPE_CHECKING:
    from .task_datamodule import TaskDataModule


class RolloutLoader:
    """Always `updates_per_round` minibatches. The round is sampled at the first `next()`, after the epoch's start
    hooks; `__iter__` itself does nothing, so Lightning may call it as often as it likes."""

    def __init__(self, data: TaskDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.updates_per_round

    def __iter__(self) -> Iterator[Minibatch]:
        done = self.data.start
        for minibatch in self.data.minibatches():
            done += 1
            yield minibatch
        check_whole_round(done, len(self))

    def state_dict(self) -> dict:
        """Empty: the position belongs to the DataModule. Without it Lightning warns that the loader cannot resume."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to load."""
