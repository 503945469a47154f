"""Checkpoints at the end of a round, after validation, and if asked as soon as a round is sampled and between its updates.

Lightning's `ModelCheckpoint` at the last update of a round makes a resumed run skip that round's validation and the next
round's start hooks; this one leaves the order of hooks after a resume the exact rest of the uninterrupted run's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from ..types import ConfigError


class RoundCheckpoint(Checkpoint):
    """Writes `<run folder>/checkpoints/round-000012-update-000.ckpt`, each under another name first and then renamed, so a file
    with that name is whole.

    Args:
        every_n_rounds: save at the end of every n-th round and of the last; 0 never does.
        every_n_updates: save also inside a round after every n-th of its updates; 0 never does. A run that is told to stop
            inside a round (`max_steps`, `max_time`) saves there too, unless every_n_rounds is 0.
        after_sampling: save also as soon as a round is sampled, so that it is never paid for twice.
        keep: the newest this many stay; at least 2, so that one is whole whatever happens while the other is written.
    """

    def __init__(self, every_n_rounds: int = 10, every_n_updates: int = 0, after_sampling: bool = False, keep: int = 2) -> None:
        if every_n_rounds < 0 or every_n_updates < 0:
            raise ConfigError(
                f"checkpoint.every_n_rounds is {every_n_rounds}, every_n_updates {every_n_updates}; expected 0 (never) or more"
            )
        if keep < 2:
            raise ConfigError(f"checkpoint.keep is {keep}; expected at least 2")
        self.every_n_rounds, self.every_n_updates = every_n_rounds, every_n_updates
        self.after_sampling, self.keep = after_sampling, keep

    def on_round(self, trainer: L.Trainer, module: L.LightningModule, sampled: object, kept: object) -> None:
        if self.after_sampling:
            loop = trainer.fit_loop.epoch_loop
            loop._batches_that_stepped -= 1  # Lightning adds 1 when it resumes here; the x of self.log depends on it
            self.save(trainer, trainer.current_epoch, 0)
            loop._batches_that_stepped += 1

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        due = self.every_n_updates and (batch_idx + 1) % self.every_n_updates == 0
        stops = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if not last and (due or (stops and self.every_n_rounds)):
            self.save(trainer, trainer.current_epoch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        last = done == trainer.max_epochs or trainer.should_stop
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if whole and self.every_n_rounds and (done % self.every_n_rounds == 0 or last):
            self.save(trainer, done, 0)

    def save(self, trainer: L.Trainer, rounds: int, updates: int) -> None:
        """Writes a checkpoint of `rounds` whole rounds and `updates` of the next. Every rank must call it."""
        folder = Path(trainer.default_root_dir) / "checkpoints"
        final, partial = folder / f"round-{rounds:06d}-update-{updates:03d}.ckpt", folder / "writing.tmp"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            _remove(final)
            os.replace(partial, final)
            for old in checkpoints_in(trainer.default_root_dir)[: -self.keep]:
                _remove(old)
        trainer.strategy.barrier()


def checkpoints_in(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run in the order in which they were written: after going back to an older one, what the run then
    writes is newer than the rounds that it left."""
    found = (Path(run_dir) / "checkpoints").glob("round-*-update-*.ckpt")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
