"""Checkpoints at the end of a round, after validation, and if asked as soon as a round is sampled and between its updates.

Lightning's `ModelCheckpoint` at the last update of a round makes a resumed run skip that round's validation and the next
round's start hooks; this one leaves the order of hooks after a resume the exact rest of the uninterrupted run's.
"""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from ..types import ConfigError
from .checkpoint_files import checkpoints_in, link, remove
from .preemption import StopRequest


class RoundCheckpoint(Checkpoint):
    """Writes `<run folder>/checkpoints/round-000012-update-000.ckpt`, each under another name first and then renamed, so a file
    with that name is whole.

    A run that is told to end by SIGTERM or Ctrl-C finishes the update, saves, and exits with code 143 or 130; while it samples,
    it saves the round once it is there. A second Ctrl-C ends it at once.

    Args:
        every_n_rounds: save at the end of every n-th round and of the last; 0 never does.
        every_n_updates: save also inside a round after every n-th of its updates; 0 never does. A run that is told to stop
            inside a round (`max_steps`, `max_time`) saves there too, unless every_n_rounds is 0.
        after_sampling: save also as soon as a round is sampled, so that it is never paid for twice.
        keep: the newest this many stay; at least 2, so that one is whole whatever happens while the other is written.
        best: a tag such as `eval/math500/avg@8`. The end of a round whose validation gives the largest value so far is saved as
            well, and stays as `best-round-000012-update-000.ckpt`; of equal values the first.
    """

    def __init__(
        self,
        every_n_rounds: int = 10,
        every_n_updates: int = 0,
        after_sampling: bool = False,
        keep: int = 2,
        best: str | None = None,
    ) -> None:
        if every_n_rounds < 0 or every_n_updates < 0:
            raise ConfigError(
                f"checkpoint.every_n_rounds is {every_n_rounds}, every_n_updates {every_n_updates}; expected 0 (never) or more"
            )
        if keep < 2:
            raise ConfigError(f"checkpoint.keep is {keep}; expected at least 2")
        self.every_n_rounds, self.every_n_updates = every_n_rounds, every_n_updates
        self.after_sampling, self.keep, self.best = after_sampling, keep, best
        self.record, self.beaten = float("-inf"), False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.is_global_zero:  # what a kill left may be the best one too: shards would be written into it
            remove(_folder(trainer) / "writing.tmp")
        if self.best is not None:
            prefixes = [f"eval/{name}/" for name in trainer.datamodule.benchmarks]
            if not self.best.startswith(tuple(prefixes)):
                measured = f"a tag that begins with {' or '.join(prefixes)}" if prefixes else "a benchmark in data.benchmarks"
                raise ConfigError(f"checkpoint.best is {self.best}, which nothing measures; expected {measured}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Compares at the end of a round only: a checkpoint of another moment could not be resumed exactly."""
        ends = trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self.best is None or trainer.sanity_checking or not ends:
            return
        if self.best not in trainer.callback_metrics:
            tags = ", ".join(sorted(tag for tag in trainer.callback_metrics if tag.startswith("eval/")))
            raise ConfigError(f"checkpoint.best is {self.best}, which no validation measures; expected one of {tags}")
        value = float(trainer.callback_metrics[self.best])
        if value > self.record:
            self.record, self.beaten = value, True

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.stop_request = StopRequest()

    def on_round(self, trainer: L.Trainer, module: L.LightningModule, sampled: object, kept: object) -> None:
        told = self.stop_request.made(trainer)
        if self.after_sampling or (told and self.every_n_rounds):
            loop = trainer.fit_loop.epoch_loop
            loop._batches_that_stepped -= 1  # Lightning adds 1 when it resumes here; the x of self.log depends on it
            self.save(trainer, trainer.current_epoch, 0)
            loop._batches_that_stepped += 1
        if told:
            self._leave(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        due = self.every_n_updates and (batch_idx + 1) % self.every_n_updates == 0
        told = self.stop_request.made(trainer)
        stops = told or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if not last and (due or (stops and self.every_n_rounds)):
            self.save(trainer, trainer.current_epoch, batch_idx + 1)
        if not last and told:
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        last = done == trainer.max_epochs or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        told = self.stop_request.made(trainer)
        due = self.every_n_rounds and (done % self.every_n_rounds == 0 or last or told)
        if whole and (due or self.beaten):
            self.save(trainer, done, 0)
        if told and not last:
            self._leave(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        if self.every_n_rounds:
            self.stop_request.leave(
                trainer, f"saved {checkpoints_in(trainer.default_root_dir)[-1]}, --ckpt_path last goes on from there"
            )
        self.stop_request.leave(trainer, "not saved, since checkpoint.every_n_rounds is 0")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.stop_request.withdraw()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "stop_request"):
            self.stop_request.withdraw()

    def save(self, trainer: L.Trainer, rounds: int, updates: int) -> None:
        """Writes a checkpoint of `rounds` whole rounds and `updates` of the next. Every rank must call it."""
        folder = _folder(trainer)
        final, partial = folder / f"round-{rounds:06d}-update-{updates:03d}.ckpt", folder / "writing.tmp"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            if self.beaten:
                self._keep_best(partial, final)
            remove(final)
            os.replace(partial, final)
            for old in checkpoints_in(trainer.default_root_dir)[: -self.keep]:
                remove(old)
        self.beaten = False
        trainer.strategy.barrier()

    def _keep_best(self, whole: Path, final: Path) -> None:
        """Names a checkpoint twice, before it gets its own name: a run killed in between does the round again, and this too."""
        best, older = final.with_name(f"best-{final.name}"), checkpoints_in(final.parent.parent, best=True)
        partial = final.with_name("linking.tmp")
        remove(partial)
        link(whole, partial)
        remove(best)
        os.replace(partial, best)
        for old in set(older) - {best}:
            remove(old)

    def state_dict(self) -> dict:
        return {} if self.best is None else {"best": self.best, "record": self.record}

    def load_state_dict(self, state_dict: dict) -> None:
        if state_dict.get("best") == self.best:
            self.record = state_dict["record"]


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
