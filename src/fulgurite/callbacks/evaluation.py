"""Evaluations on disk: a row of numbers per evaluated round, a summary of the run, and the completions themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..metrics.generations import generation_rows, shown
from ..types import EvaluationBatch
from .timing import PhaseTimer

ROWS_SHOWN = 4


class EvaluationLog(Callback):
    """Writes into the run folder what validation measures, and what `predict` samples. A fit also measures its start with
    `trainer.num_sanity_val_steps: -1`.

    `evaluation.jsonl`: a row per round with the counters, `seconds` by phase (null where the run was not trained) and the
    numbers of each benchmark; a round evaluated again replaces its row. `summary.json`: `before` and `after` (first and last
    row: {benchmark: accuracy}, with `rounds`, `interval_95`, `prompts` and the numbers at k), `seconds` by phase,
    `sampled_tokens`, `trained_tokens`, `updates`, `prompts` drawn, `rounds`, `seed`.
    `predictions.jsonl` (rank r > 0: `predictions.rank1.jsonl`): a row per completion of `predict`, see `generation_rows`; an
    older one becomes `predictions.1.jsonl`. Outside a fit a line per benchmark is printed, too.

    Args:
        generations: write such rows at every validation too: `generations/000012.jsonl` after 12 rounds.
    """

    def __init__(self, generations: bool = False) -> None:
        self.generations = generations

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.generations and _counts(trainer):
            _begin(_generations(trainer, module))

    def on_validation_batch_end(
        self, trainer, module, outputs, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.generations and _counts(trainer):
            _add(_generations(trainer, module), batch, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.generations and _counts(trainer):
            _finish(_generations(trainer, module))
        if not _counts(trainer) or not trainer.is_global_zero:
            return
        run, rounds = Path(trainer.default_root_dir), _rounds(trainer, module)
        benchmarks = _measured(trainer)
        fitting = trainer.state.fn == "fit"  # then later rows are of a future that this run leaves
        if not fitting:
            _show(benchmarks)
        rows = read_rows(run / "evaluation.jsonl")
        spent = next((r.get("seconds") for r in rows if r["rounds"] == rounds), None)
        row = {
            "rounds": rounds,
            **{name: int(getattr(module, name)) for name in ("prompts", "updates", "sampled_tokens", "trained_tokens")},
            "seconds": _timer(trainer).totals if fitting and _timer(trainer) else spent,
            "benchmarks": benchmarks,
        }
        old = [r for r in rows if r["rounds"] < rounds or (r["rounds"] > rounds and not fitting)]
        rows = sorted([*old, row], key=lambda r: r["rounds"])
        _write(run / "evaluation.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        self._summarise(trainer, run, rows)

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            _show(_measured(trainer))

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _begin(_predictions(trainer))

    def on_predict_batch_end(
        self, trainer, module, outputs, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        _add(_predictions(trainer), batch, module)

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        path = _predictions(trainer)
        if path.exists():
            path.rename(next(older for n in count(1) if not (older := path.with_stem(f"{path.stem}.{n}")).exists()))
        _finish(path)
        if trainer.is_global_zero:
            with path.open() as lines:
                print(*(shown(json.loads(line)) for line in islice(lines, ROWS_SHOWN)), f"all rows: {path}", sep="\n")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        rows = read_rows(Path(trainer.default_root_dir) / "evaluation.jsonl")
        if trainer.is_global_zero and rows:
            self._summarise(trainer, Path(trainer.default_root_dir), rows)

    def _summarise(self, trainer: L.Trainer, run: Path, rows: list[dict]) -> None:
        timer = _timer(trainer)
        old = json.loads((run / "summary.json").read_text()) if (run / "summary.json").exists() else {}
        fitting = trainer.state.fn == "fit" and timer is not None
        first, last = rows[0], rows[-1]
        counters = ("rounds", "prompts", "updates", "sampled_tokens", "trained_tokens")
        counted = {name: int(getattr(trainer.lightning_module, name)) for name in counters} if fitting else old or last
        summary = {
            **{name: counted[name] for name in counters},
            "seed": getattr(trainer.datamodule, "seed", None),
            "before": _point(first),
            "after": _point(last),
            "seconds": timer.totals if fitting else old.get("seconds", {}),
        }
        _write(run / "summary.json", json.dumps(summary, indent=2) + "\n")


def _show(benchmarks: Mapping[str, Mapping[str, float]]) -> None:
    """Prints of each its accuracy with the 95% interval, its number of prompts, and whatever else was measured."""
    known = ("accuracy", "low", "high", "prompts")
    print()  # below the progress bar
    for name, score in benchmarks.items():
        others = [f"{field} {value:.3g}" for field, value in score.items() if field not in known]
        interval = f"{score['accuracy']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"
        print(f"{name:<18} {interval:>22} of {score['prompts']:.0f} prompts; {', '.join(others)}")


def _measured(trainer: L.Trainer) -> dict[str, dict[str, float]]:
    """{benchmark: {field: value}} of the last evaluation."""
    benchmarks: dict[str, dict[str, float]] = {}
    for key, value in trainer.callback_metrics.items():
        if key.startswith("eval/"):
            name, _, field = key.removeprefix("eval/").rpartition("/")
            benchmarks.setdefault(name, {})[field] = float(value)
    return benchmarks


def _timer(trainer: L.Trainer) -> PhaseTimer | None:
    return next((c for c in trainer.callbacks if isinstance(c, PhaseTimer)), None)


def _point(row: dict) -> dict:
    scores = row["benchmarks"]
    return {
        **{name: score["accuracy"] for name, score in scores.items()},
        "rounds": row["rounds"],
        "interval_95": {name: [score["low"], score["high"]] for name, score in scores.items()},
        "prompts": {name: int(score["prompts"]) for name, score in scores.items()},
        "at_k": {name: {field: value for field, value in score.items() if "@" in field} for name, score in scores.items()},
    }


def _counts(trainer: L.Trainer) -> bool:
    """Whether a validation is one of whole benchmarks: a look at a few batches before training is not."""
    return not trainer.sanity_checking or trainer.num_sanity_val_steps == float("inf")


def _rounds(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Rounds behind the weights that are evaluated; the module counts one only after its validation."""
    return int(module.rounds) + (trainer.state.fn == "fit" and not trainer.sanity_checking)


def _predictions(trainer: L.Trainer) -> Path:
    return _of_rank(trainer, "predictions")


def _generations(trainer: L.Trainer, module: L.LightningModule) -> Path:
    return _of_rank(trainer, f"generations/{_rounds(trainer, module):06d}")


def _of_rank(trainer: L.Trainer, name: str) -> Path:
    rank = f".rank{trainer.global_rank}" if trainer.global_rank else ""
    return Path(trainer.default_root_dir) / f"{name}{rank}.jsonl"


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(path: Path, text: str) -> None:
    _begin(path)
    _partial(path).write_text(text)
    _finish(path)


def _begin(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _partial(path).write_text("")


def _add(path: Path, batch: EvaluationBatch, module: L.LightningModule) -> None:
    with _partial(path).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in generation_rows(batch, module.tokenizer.decode))


def _finish(path: Path) -> None:
    os.replace(_partial(path), path)


def _partial(path: Path) -> Path:
    """What is being written, so that a file under its own name is whole."""
    return path.with_name(path.name + ".tmp")
