"""TensorBoard beyond single curves: a dashboard of what matters, and the settings of a run beside its accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

Chart = tuple[str, list[str]]
"""Kind, and patterns of the tags that are drawn together."""


def _lines(*tags: str) -> Chart:
    return "Multiline", [f"^{tag}$" for tag in tags]


LAYOUT: dict[str, dict[str, Chart]] = {
    "Does it learn": {
        "accuracy of the benchmarks": _lines("eval/.*/accuracy"),
        "reward of a completion": _lines("reward/mean", "reward/correct"),
        "groups with something to learn from": _lines("round/mixed_groups", "round/informative_pair_frac"),
        "tokens of a completion": _lines("round/tokens_per_completion", "eval/.*/tokens_per_completion"),
        "entropy of a token, nats": _lines("loss/entropy", "loss/.*_entropy"),
    },
    "Is it sound": {
        "norm of the gradient": _lines("grad_norm/.*"),
        "engine and trainer, nats apart": _lines("mismatch/logprob_gap_mean_nats", "mismatch/logprob_gap_p99_nats"),
        "completions cut, or not judged": _lines("round/truncated", "reward/ungradable", "reward/failed"),
        "tokens outside the clip window": _lines("loss/clip_fraction_.*", "loss/.*_outside_window"),
        "updates not taken": _lines("loss/skipped", "loss/empty"),
    },
    "Where the time goes": {
        "seconds of a round by phase": _lines("time/(sample|judge|score|train|sync|check|validate|other)_s"),
        "tokens per second": _lines("time/.*_tokens_per_s"),
        "memory, GiB": _lines("memory/.*"),
    },
}


class Dashboard(Callback):
    """Writes the layout of the tab Custom Scalars."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for writer in _writers(trainer):
            writer.add_custom_scalars(LAYOUT)


def write_settings(trainer: L.Trainer, settings: Mapping[str, object], metrics: Iterable[str]) -> None:
    """Fills the tab HParams.

    Args:
        settings: {name: value}; what is no number, text or truth value is left out.
        metrics: tags of curves whose last values stand beside them.
    """
    from torch.utils.tensorboard.summary import hparams

    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    for writer in _writers(trainer):
        for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
            writer.file_writer.add_summary(summary)


def _writers(trainer: L.Trainer) -> list:
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
