"""The callbacks of every run, for the command line and for Python."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback

from .checkpoint import RoundCheckpoint
from .dashboard import Dashboard
from .evaluation import EvaluationLog
from .export import ModelExport
from .guards import Guards
from .progress import RoundProgressBar
from .round_metrics import RoundMetrics
from .samples import SampleLogger
from .timing import PhaseTimer

TUNABLE = {"guards": Guards, "samples": SampleLogger, "checkpoint": RoundCheckpoint, "evaluation": EvaluationLog}


def fixed_callbacks(progress_bar: bool = True) -> list[Callback]:
    """Those without settings: phases, measures of a round, the dashboard, the exported model, the progress bar."""
    return [PhaseTimer(), RoundMetrics(), Dashboard(), ModelExport(), *([RoundProgressBar()] if progress_bar else [])]


def house_callbacks(progress_bar: bool = True, **settings: dict) -> list[Callback]:
    """All of them, with settings by name: `house_callbacks(checkpoint={"every_n_rounds": 5})`.

    Args:
        progress_bar: with the progress bar; without it also give the Trainer `enable_progress_bar=False`.
        settings: keyword arguments of `guards`, `samples`, `checkpoint` and `evaluation`.
    """
    return [kind(**settings.get(name, {})) for name, kind in TUNABLE.items()] + fixed_callbacks(progress_bar)
