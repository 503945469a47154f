"""The progress bar counts rounds and names the phase."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ..parallel import sum_over_ranks
from ..types import Round


class RoundProgressBar(TQDMProgressBar):
    """`Round 3 sample: 0/4`, with the mean reward of the round's sampled rows and the loss of the last update.

    Phases are shown on a terminal; a log file gets a line a round.
    """

    _reward: float | None = None

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 1000)

    @property
    def train_description(self) -> str:
        return f"Round {self.trainer.current_epoch} {self.trainer.lightning_module.clock.phase}".rstrip()

    @property
    def validation_description(self) -> str:
        return f"Validation {self.trainer.lightning_module.clock.phase}".rstrip()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        if self._show_phase not in module.clock.listeners:
            module.clock.listeners.append(self._show_phase)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.train_description)

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        rewards = sampled.rewards.double()
        total, rows = sum_over_ranks(trainer, torch.stack([rewards.sum(), rewards.new_tensor(len(rewards))])).tolist()
        self._reward = total / rows if rows else None
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, module))

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        shown = {"reward": self._reward, "loss": module.last_update.get("loss")}
        return {**super().get_metrics(trainer, module), **{k: f"{v:.4g}" for k, v in shown.items() if v is not None}}

    def _show_phase(self, phase: str) -> None:
        if not sys.stderr.isatty():
            return
        if self._train_progress_bar is not None:
            self.train_progress_bar.set_description(self.train_description)
        if self._val_progress_bar is not None and self.trainer.validating:
            self.val_progress_bar.set_description(self.validation_description)
