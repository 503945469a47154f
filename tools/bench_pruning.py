"""Seconds of training per round against the pruning rate of CPPO, and what skipping rows without credit saves.

    python tools/bench_pruning.py [--repeats 5] [--rounds 3]

A tiny model, 16 prompts x 16 completions of up to 48 tokens, a KL term and two inner epochs; the rates in turns, medians of CPU
seconds. `train` and `score` are the phases that pruning shortens, `sample` the one it does not. The second table: half of the
groups have no spread, no KL term, their rows skipped or computed like the others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings

import lightning as L
import torch

from fulgurite.callbacks.pruning import CompletionPruning
from fulgurite.callbacks.timing import PhaseTimer
from fulgurite.credit.group import Advantage
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.models.tiny import TinyModel
from fulgurite.modules import base
from fulgurite.modules.grpo import GRPO
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.tasks.addition import Addition
from fulgurite.types import Completion, Prompt, SamplingSpec, Verdict

RATES = (0.0, 0.5, 0.75, 0.875, 0.9375)
matters = base.rows_that_matter


class Digits(Addition):
    """A reward that random text earns; in `dead` every second prompt gives all its completions the same."""

    reward_names = ("digits",)

    def __init__(self, dead: bool = False) -> None:
        super().__init__(digits=2)
        self.dead = dead

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        value = sum(c.isdigit() for c in completion.text) / len(completion.token_ids)
        if self.dead and int(prompt.text[0]) % 2:
            value = 1.0
        return Verdict("correct", {"digits": value}, value)


def seconds(rounds: int, kl: float, rate: float = 0.0, dead: bool = False) -> dict[str, float]:
    """CPU seconds of each phase, per round, in one fresh run."""
    module = GRPO(TinyModel(), optimizer=OptimizerSpec(learning_rate=1e-4), kl_beta=kl)
    data = RolloutDataModule(
        Digits(dead), 16, 16, SamplingSpec(max_new_tokens=48), inner_epochs=2,
        advantage=Advantage(scale="sample_std"),
    )  # fmt: skip
    timer = PhaseTimer()
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu", devices=1, max_epochs=rounds, default_root_dir=folder, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[timer, CompletionPruning(rate)],
        ).fit(module, data)  # fmt: skip
    return {phase: timer.totals["cpu"].get(phase, 0.0) / rounds for phase in ("sample", "score", "train")}


def table(name: str, seen: dict[str, list[dict[str, float]]]) -> None:
    print(f"{name:<22}" + "".join(f"{phase:>12}" for phase in ("sample", "score", "train")) + f"{'score + train':>16}  ratio")
    first = None
    for row, runs in seen.items():
        medians = {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
        both = statistics.median(run["score"] + run["train"] for run in runs)
        first = first or both
        numbers = "".join(f"{1000 * medians[phase]:>9.0f} ms" for phase in ("sample", "score", "train"))
        print(f"{row:<22}{numbers}{1000 * both:>13.0f} ms{both / first:>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    by_rate: dict[str, list] = {f"rate {rate}": [] for rate in RATES}
    by_skip: dict[str, list] = {"all rows computed": [], "skipped": []}
    for _ in range(options.repeats):
        for rate in RATES:
            by_rate[f"rate {rate}"].append(seconds(options.rounds, kl=0.04, rate=rate))
        base.rows_that_matter = lambda rows, components: torch.ones(len(rows), dtype=torch.bool)
        by_skip["all rows computed"].append(seconds(options.rounds, kl=0.0, dead=True))
        base.rows_that_matter = matters
        by_skip["skipped"].append(seconds(options.rounds, kl=0.0, dead=True))
    table("pruning", by_rate)
    print()
    table("half of the groups dead", by_skip)


if __name__ == "__main__":
    main()
