"""Seconds, tokens per second and memory of every round."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..timing import PhaseClock
from . import log_numbers, over_ranks

Totals = dict[str, dict[str, float]]


class PhaseTimer(Callback):
    """Logs at the end of each round `time/<phase>_s` and `time/other_s`, their sum `time/round_s`,
    `time/sampled_tokens_per_s` (of the phase sample), `time/trained_tokens_per_s` (of the phase train),
    `memory/peak_rss_gib` and, on CUDA, `memory/peak_cuda_gib` (both of the process so far).

    Wall seconds are those of the slowest rank, tokens those of all ranks. Totals are saved, so a resumed run continues
    them, also inside a round; work that a kill undid is not in them. The seconds spent on writing a checkpoint at a
    round's end belong to the next round.
    """

    def __init__(self) -> None:
        self._totals: Totals = {"wall": {}, "cpu": {}}
        self._round_start: Totals | None = None
        self._clock: PhaseClock | None = None
        self._settled: Totals = {}

    @property
    def totals(self) -> Totals:
        """{"wall": {phase: seconds}, "cpu": {phase: seconds}} on this rank since the run's first start."""
        if self._clock is not None:
            now = {"wall": self._clock.wall, "cpu": self._clock.cpu}
            for kind, seconds in now.items():
                for phase, value in seconds.items():
                    spent = value - self._settled[kind][phase]
                    self._totals[kind][phase] = self._totals[kind].get(phase, 0.0) + spent
            self._settled = now
        return {kind: dict(seconds) for kind, seconds in self._totals.items()}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._clock = module.clock
        self._settled = {"wall": module.clock.wall, "cpu": module.clock.cpu}
        if self._round_start is None:
            self._round_start = self._reading(module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        start, now = self._round_start, self._reading(module)
        self._round_start = now
        seconds = {f"time/{phase}_s": now["wall"][phase] - start["wall"][phase] for phase in now["wall"]}
        seconds["time/round_s"] = sum(seconds.values())
        numbers = over_ranks(trainer, seconds | peak_memory(trainer.strategy.root_device), max)
        for kind, phase in (("sampled", "sample"), ("trained", "train")):
            if spent := numbers[f"time/{phase}_s"]:
                tokens = now["tokens"][kind] - start["tokens"][kind]
                numbers[f"time/{kind}_tokens_per_s"] = tokens / spent
        log_numbers(trainer, numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals, "round_start": self._round_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clock = None
        self._totals = {kind: dict(seconds) for kind, seconds in state_dict["totals"].items()}
        self._round_start = state_dict["round_start"]

    def _reading(self, module: LightningModule) -> Totals:
        tokens = {"sampled": float(module.sampled_tokens), "trained": float(module.trained_tokens)}
        return {**self.totals, "tokens": tokens}


def peak_memory(device: torch.device) -> dict[str, float]:
    """Largest memory of this process so far in GiB: resident, and allocated on `device` if that is CUDA."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"memory/peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        peak["memory/peak_cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak
