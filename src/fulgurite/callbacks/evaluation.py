"""Accuracies on disk: one row per evaluated round, and a summary of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..types import EvaluationBatch
from .timing import PhaseTimer


class EvaluationLog(Callback):
    """Writes into the run folder what validation measures, and what `predict` samples.

    `evaluation.jsonl`: a row per round with the counters and, for each benchmark, accuracy and 95% interval; a round evaluated
    again replaces its row. `summary.json`: `before` and `after` (first and last row: {benchmark: accuracy}), `interval_95`,
    `prompts`, `seconds` by phase, `sampled_tokens`, `trained_tokens`, `updates`, `rounds`, `seed`.
    `predictions.jsonl` (rank r > 0: `predictions.rank1.jsonl`): a row per completion of `predict`.
    """

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        rounds = int(module.rounds) + (trainer.state.fn == "fit")
        measured = {k.split("/", 1)[1]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("eval/")}
        benchmarks: dict[str, dict[str, float]] = {}
        for key, value in measured.items():
            name, _, field = key.rpartition("/")
            benchmarks.setdefault(name, {})[field] = value
        row = {
            "rounds": rounds,
            **{name: int(getattr(module, name)) for name in ("updates", "sampled_tokens", "trained_tokens")},
            "benchmarks": benchmarks,
        }
        fitting = trainer.state.fn == "fit"  # then later rows are of a future that this run leaves
        old = [r for r in read_rows(run / "evaluation.jsonl") if r["rounds"] < rounds or (r["rounds"] > rounds and not fitting)]
        rows = sorted([*old, row], key=lambda r: r["rounds"])
        _write(run / "evaluation.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        self._summarise(trainer, run, rows)

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _predictions(trainer).unlink(missing_ok=True)

    def on_predict_batch_end(
        self, trainer, module, outputs: EvaluationBatch, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        size = len(outputs.completions) // max(1, len(outputs.prompts))
        owners = [prompt for prompt in outputs.prompts for _ in range(size)]
        with _predictions(trainer).open("a") as file:
            for prompt, completion, verdict in zip(owners, outputs.completions, outputs.verdicts, strict=True):
                row = {
                    "benchmark": outputs.benchmark,
                    "prompt_id": prompt.id,
                    "prompt": prompt.text,
                    "answer": prompt.answer,
                    "text": completion.text,
                    "finish_reason": completion.finish_reason,
                    "outcome": verdict.outcome,
                    "reward": verdict.reward,
                }
                file.write(json.dumps(row) + "\n")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        rows = read_rows(Path(trainer.default_root_dir) / "evaluation.jsonl")
        if trainer.is_global_zero and rows:
            self._summarise(trainer, Path(trainer.default_root_dir), rows)

    def _summarise(self, trainer: L.Trainer, run: Path, rows: list[dict]) -> None:
        timer = next((c for c in trainer.callbacks if isinstance(c, PhaseTimer)), None)
        old = json.loads((run / "summary.json").read_text()) if (run / "summary.json").exists() else {}
        fitting = trainer.state.fn == "fit" and timer is not None
        first, last = rows[0], rows[-1]
        counters = ("rounds", "updates", "sampled_tokens", "trained_tokens")
        counted = {name: int(getattr(trainer.lightning_module, name)) for name in counters} if fitting else old or last
        summary = {
            **{name: counted[name] for name in counters},
            "seed": getattr(trainer.datamodule, "seed", None),
            "before": _point(first),
            "after": _point(last),
            "seconds": timer.totals if fitting else old.get("seconds", {}),
        }
        _write(run / "summary.json", json.dumps(summary, indent=2) + "\n")


def _point(row: dict) -> dict:
    scores = row["benchmarks"]
    return {
        **{name: score["accuracy"] for name, score in scores.items()},
        "interval_95": {name: [score["low"], score["high"]] for name, score in scores.items()},
        "prompts": {name: int(score["prompts"]) for name, score in scores.items()},
    }


def _predictions(trainer: L.Trainer) -> Path:
    rank = f".rank{trainer.global_rank}" if trainer.global_rank else ""
    return Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)
