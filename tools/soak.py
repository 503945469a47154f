"""Does a long run stay as it is? Rounds of sampling, grading in worker processes, training, validation and saving.

    python tools/soak.py --minutes 5 [--out runs/soak]

After every round it looks at its own memory, threads, open files and child processes. It ends with exit code 1 if memory
grows by more than `GROWTH_MIB` between the second fifth of the rounds and the last, or if any of the counts is higher in every
round of the last fifth than in all of the second: another thread may have a file open for a moment.
`soak.jsonl` in the folder has a row per round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from fulgurite.callbacks.defaults import house_callbacks
from fulgurite.data.rewards import Reward
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.data.task_datamodule import Benchmark
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.grpo import GRPO
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.tasks.addition import Addition
from fulgurite.types import SamplingSpec

GROWTH_MIB = 30.0
COUNTS = ("threads", "files", "children")


def resources() -> dict[str, float]:
    """Of this process: resident memory (MiB), threads, open files, and processes that it started and that still exist."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = [Path(f"/proc/self/task/{task}/children").read_text().split() for task in os.listdir("/proc/self/task")]
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "children": sum(map(len, children)),
    }


class Watch(Callback):
    """Writes a row of `resources` after every round, and keeps none; ends the run when the time is over."""

    def __init__(self, minutes: float, path: Path) -> None:
        self.end, self.path = time.monotonic() + 60 * minutes, path

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"round": trainer.current_epoch, **resources()}) + "\n")
        trainer.should_stop = time.monotonic() > self.end


def leaks(rows: list[dict[str, float]]) -> list[str]:
    """What grew, from the rows of a run."""
    fifth = len(rows) // 5
    if not fifth:
        return [f"there were {len(rows)} rounds; expected at least 5: more minutes"]
    early, late = rows[fifth : 2 * fifth], rows[-fifth:]
    before, after = (median(row["memory_mib"] for row in part) for part in (early, late))
    found = [f"memory grew from {before:.1f} to {after:.1f} MiB"] if after - before > GROWTH_MIB else []
    for name in COUNTS:
        most, least = max(row[name] for row in early), min(row[name] for row in late)
        found += [f"{name} grew from {most:.0f} to {least:.0f}"] if least > most else []
    return found


def train(minutes: float, out: Path) -> list[dict[str, float]]:
    """The rows of a run in the folder."""
    policy = TinyModel("qwen3", heads=6, kv_heads=6, head_dim=32, alphabet="0123456789+-*/=#$%()[]{}<>,.:;?! abcdefghijklmno")
    sampling = SamplingSpec(max_new_tokens=8)
    data = RolloutDataModule(
        Addition(2),
        prompts_per_step=16,
        completions_per_prompt=4,
        sampling=sampling,
        rewards={"overlong": Reward(0.1, "fulgurite.rewards.shaping.soft_overlong", {"limit": 8, "buffer": 4})},
        benchmarks={"sampled": Benchmark("held_out", sampling, limit=64)},
    )
    out.mkdir(parents=True)
    watch = Watch(minutes, out / "soak.jsonl")
    guards = {"max_all_equal": 1.1, "max_truncated": 1.0}
    settings = {"checkpoint": {"every_n_rounds": 5, "after_sampling": True}, "guards": guards}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=10**6,
        check_val_every_n_epoch=5,
        default_root_dir=out,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(out, name="", version=""),
        callbacks=[watch, *house_callbacks(progress_bar=False, **settings)],
    )
    trainer.fit(GRPO(policy, optimizer=OptimizerSpec(learning_rate=1e-4)), datamodule=data)
    return [json.loads(line) for line in watch.path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    rows = train(options.minutes, options.out)
    last = rows[-1]
    print(f"{len(rows)} rounds, at the end {last['memory_mib']:.1f} MiB, " + ", ".join(f"{last[n]:.0f} {n}" for n in COUNTS))
    found = leaks(rows)
    print("\n".join(found) or "nothing grew")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
