"""Runs the guards on rounds and updates, and stops a run that would go on wrong."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..guards.all_equal_groups import check_all_equal_groups, equal_groups, equal_groups_without_credit
from ..guards.empty_minibatch import check_empty_round
from ..guards.engine_gap import PATIENCE_UPDATES, check_engine_gap, max_gap_of
from ..guards.failed_grading import check_failed_grading, failed_gradings
from ..guards.non_finite import check_non_finite
from ..guards.truncation import check_truncation, cut_without_gold
from ..guards.weights_move import Watched, check_weights_move, count_moved, watch
from ..parallel import sum_over_ranks
from ..types import ConfigError, Round


class Guards(Callback):
    """One threshold per guard. The first bad observation of a row warns; too many raise `GuardError` on all ranks.

    Args:
        max_truncated: largest share of a round's completions cut by max_new_tokens and without a gold answer; 1 allows all.
        max_all_equal: a round is bad if at least this share of its groups have equal rewards and no credit for a trained model;
            above 1 switches it off.
        max_failed: largest share of a round's completions on which the grader or a reward may fail; 1 switches it off.
        patience_rounds: bad rounds in a row, of any of the three, before the run stops.
        max_skipped_updates: updates in a row that may not be finite before the run stops; 0 only warns.
        min_moved: smallest share of sampled weights with a gradient that an update must change, in each parameter group
            with a learning rate above 0; the third update in a row below it stops the run; 0 switches it off.
        max_empty_rounds: rounds in a row with only empty minibatches before the run stops; 0 only warns.
        max_gap_nats: largest mean distance between the engine's and the trainer's log-probabilities of an update's tokens;
            the third update in a row above it stops the run, as does a probe after a weight load; by default 0.001 where
            trainer and engine compute in float32 and 0.1 elsewhere; infinite switches both off.
        max_contaminated: largest share of a benchmark's questions that may stand in the training split, checked before the
            run begins; 1 switches it off.
    """

    def __init__(
        self,
        max_truncated: float = 0.9,
        max_all_equal: float = 1.0,
        max_failed: float = 0.1,
        patience_rounds: int = 10,
        max_skipped_updates: int = 3,
        min_moved: float = 0.01,
        max_empty_rounds: int = 0,
        max_gap_nats: float | None = None,
        max_contaminated: float = 0.0,
    ) -> None:
        for name, value, low, high in (
            ("max_truncated", max_truncated, 0, 1),
            ("max_all_equal", max_all_equal, 0, float("inf")),
            ("max_failed", max_failed, 0, 1),
            ("patience_rounds", patience_rounds, 1, float("inf")),
            ("max_skipped_updates", max_skipped_updates, 0, float("inf")),
            ("min_moved", min_moved, 0, 1),
            ("max_empty_rounds", max_empty_rounds, 0, float("inf")),
            ("max_gap_nats", 0 if max_gap_nats is None else max_gap_nats, 0, float("inf")),
            ("max_contaminated", max_contaminated, 0, 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"guards.{name} is {value}; expected a number from {low} to {high}")
        self.max_truncated, self.max_all_equal, self.max_failed = max_truncated, max_all_equal, max_failed
        self.patience_rounds = patience_rounds
        self.max_skipped_updates, self.max_empty_rounds = max_skipped_updates, max_empty_rounds
        self.min_moved, self.max_gap_nats, self.max_contaminated = min_moved, max_gap_nats, max_contaminated
        watched = (
            "truncation",
            "all_equal_groups",
            "failed_grading",
            "non_finite",
            "engine_gap",
            "weights_move",
            "empty_rounds",
        )
        self.streaks = dict.fromkeys(watched, 0)
        self.engine_dtype: torch.dtype | None = None  # of a round that is resumed, before which no engine has started
        self._filled = 0
        self._watched: list[Watched] = []

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        self.engine_dtype = trainer.datamodule.engine.dtype
        without_credit = equal_groups_without_credit(sampled, module.streams)
        counts = [len(sampled), cut_without_gold(sampled), failed_gradings(sampled)[0], equal_groups(sampled)[1]]
        counts = torch.tensor([*counts, *without_credit.values()])
        completions, cut, failed, groups, *equal = map(int, sum_over_ranks(trainer, counts).tolist())
        streaks, patience = self.streaks, self.patience_rounds
        streaks["truncation"] = check_truncation(cut, completions, self.max_truncated, streaks["truncation"], patience)
        streaks["all_equal_groups"] = check_all_equal_groups(
            dict(zip(without_credit, equal, strict=True)), groups, self.max_all_equal, streaks["all_equal_groups"], patience
        )
        reason = failed_gradings(sampled)[1]
        streaks["failed_grading"] = check_failed_grading(
            failed, completions, reason, self.max_failed, streaks["failed_grading"], patience
        )

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if self.min_moved:
            self._watched += watch(optimizer)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        update, moved = module.last_update, count_moved(self._watched)
        self._watched = []
        device = trainer.strategy.root_device
        seen = torch.tensor([update["skipped"], 1 - update["empty"]], dtype=torch.float64, device=device)
        seen = sum_over_ranks(trainer, torch.cat([seen, *moved.values()])).tolist()
        skipped, filled, pairs = seen[0], seen[1], iter(seen[2:])
        if filled:
            self._filled += 1
            self.streaks["non_finite"] = check_non_finite(
                bool(skipped), update, self.max_skipped_updates, self.streaks["non_finite"]
            )
        if (gap := update.get("mismatch/logprob_gap_mean_nats")) is not None:
            max_gap = max_gap_of(self.max_gap_nats, trainer, self.engine_dtype)
            self.streaks["engine_gap"] = check_engine_gap(gap, max_gap, self.streaks["engine_gap"], PATIENCE_UPDATES)
        counts = dict(zip(moved, zip(pairs, pairs, strict=True), strict=True))
        self.streaks["weights_move"] = check_weights_move(counts, self.min_moved, self.streaks["weights_move"])

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        filled, self._filled = self._filled, 0
        self.streaks["empty_rounds"] = check_empty_round(
            filled, trainer.num_training_batches, self.max_empty_rounds, self.streaks["empty_rounds"]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": dict(self.streaks), "filled": self._filled, "engine_dtype": self.engine_dtype}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._filled, self.engine_dtype = state_dict["filled"], state_dict["engine_dtype"]
        self.streaks |= state_dict["streaks"]
