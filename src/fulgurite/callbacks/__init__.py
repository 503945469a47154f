"""Callbacks: thin, each acts on Lightning's hooks or on `on_round(trainer, module, sampled, kept)`.

`on_round` is called on every rank, once a round, when the round is sampled, judged, credited and selected: `sampled`
are all rows with their coefficients, `kept` those that are left after selection. It is not called again when a run
resumes inside the round. `self.log` is not allowed there, hence `log_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch.distributed as dist
from lightning.pytorch import Trainer


def log_numbers(trainer: Trainer, numbers: Mapping[str, float], step: int) -> None:
    """Writes to all loggers at once; `step` is the number of minibatches before it, as in `self.log`."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(numbers), step=step)
            logger.save()


def over_ranks(trainer: Trainer, numbers: Mapping[str, float], combine: Callable[[Iterable[float]], float]) -> dict[str, float]:
    """Numbers of all ranks combined by name, the same on every rank; a rank may lack a name. Every rank calls it."""
    if trainer.world_size == 1:
        return dict(numbers)
    everyone: list[Mapping[str, float]] = [{}] * trainer.world_size
    dist.all_gather_object(everyone, dict(numbers))
    names = dict.fromkeys(name for mine in everyone for name in mine)
    return {name: combine([mine[name] for mine in everyone if name in mine]) for name in names}
