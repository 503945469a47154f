"""What a round brought: rewards, lengths, groups with something to learn from, credit."""

from __future__ import annotations

import math
from collections import Counter

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..guards.all_equal_groups import equal_groups
from ..guards.failed_grading import failed_gradings
from ..guards.truncation import cut_completions
from ..selection.zero_variance import live_rows
from ..types import Round
from . import log_numbers, over_ranks


class RoundMetrics(Callback):
    """Logs once a round, over the sampled rows of all ranks, at the x of the round's first update:

    `reward/mean`, `reward/<name>` for each named reward, `reward/correct`, `reward/ungradable` and `reward/failed` (shares;
    a reward of one of these names gives way), `round/tokens_per_completion`, `round/truncated` (share), `round/mixed_groups`
    (share of groups of at least two rows whose rewards are not all equal), `round/informative_pair_frac` (where all groups are
    pairs: share of those with credit), `round/kept_rows`, `round/sampled_tokens` (since
    the run's start), `credit/<stream>_std` (over rows, divided by their number). A mean over nothing is not logged.
    """

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        metrics = round_metrics(over_ranks(trainer, round_sums(sampled, kept), sum))
        metrics["round/sampled_tokens"] = float(module.sampled_tokens)
        log_numbers(trainer, metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def round_sums(sampled: Round, kept: Round) -> Counter[str]:
    """Sums and counts of one rank's rows; those of several ranks add up."""
    equal, groups = equal_groups(sampled)
    cut, rows = cut_completions(sampled)
    failed, _ = failed_gradings(sampled)
    sums = Counter(
        {
            "rows": rows,
            "cut": cut,
            "failed": failed,
            "kept": int(kept.read_rows().sum()),
            "equal": equal,
            "groups": groups,
            "tokens": sum(len(completion.token_ids) for completion in sampled.completions),
            "reward": float(sampled.rewards.double().sum()),
        }
    )
    for verdict in sampled.verdicts:
        sums[f"outcome/{verdict.outcome}"] += 1
        for name, value in verdict.rewards.items():
            sums[f"named/{name}"] += value
            sums[f"named_rows/{name}"] += 1
    sizes = torch.bincount(sampled.group_index, minlength=len(sampled.prompts))
    live = sampled.group_index[live_rows(sampled.coefficients, sampled.group_index)].unique()
    sums["pairs"], sums["live_pairs"] = int((sizes == 2).sum()), int((sizes[live] == 2).sum())
    for stream, coefficients in sampled.coefficients.items():
        sums[f"credit/{stream}"] = float(coefficients.double().sum())
        sums[f"square/{stream}"] = float(coefficients.double().square().sum())
    return sums


def round_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Means, shares and deviations from the sums over all ranks."""
    metrics, rows = {"round/kept_rows": float(sums["kept"])}, sums["rows"]
    for key, total in sums.items():
        kind, _, name = key.partition("/")
        if kind == "named":
            metrics[f"reward/{name}"] = total / sums[f"named_rows/{name}"]
        elif kind == "square" and rows:
            metrics[f"credit/{name}_std"] = math.sqrt(max(0.0, total / rows - (sums[f"credit/{name}"] / rows) ** 2))
    if sums["groups"]:
        metrics["round/mixed_groups"] = 1 - sums["equal"] / sums["groups"]
        if sums["pairs"] == sums["groups"]:
            metrics["round/informative_pair_frac"] = sums["live_pairs"] / sums["pairs"]
    if rows:
        metrics["reward/mean"] = sums["reward"] / rows
        metrics["reward/correct"] = sums.get("outcome/correct", 0) / rows
        metrics["reward/ungradable"] = sums.get("outcome/ungradable", 0) / rows
        metrics["reward/failed"] = sums["failed"] / rows
        metrics["round/tokens_per_completion"] = sums["tokens"] / rows
        metrics["round/truncated"] = sums["cut"] / rows
    return metrics
