"""What is measured on a benchmark: a table of its completions, the numbers of a table, and a metric that gathers tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..types import Completion, EvaluationBatch, Verdict
from .intervals import accuracy_interval
from .majority import majority_at_k
from .pass_at_k import pass_at_k

FIELDS = ("correct", "vote", "tokens", "truncated", "ungradable")
NO_VOTE = -1


def table_of(completions: Sequence[Completion], verdicts: Sequence[Verdict], n: int) -> Tensor:
    """(Q, n, len(FIELDS)) int64 from Q * n judged completions, prompt by prompt.

    `vote` numbers the answers, `NO_VOTE` where there is none or it is ungradable. Votes are counted within a prompt, all of
    whose completions are in one call: a number need not stand for the same text in another.
    """
    rows, numbers = [], {}
    for completion, verdict in zip(completions, verdicts, strict=True):
        ungradable = verdict.outcome == "ungradable"
        vote = NO_VOTE
        if verdict.answer is not None and not ungradable:
            vote = numbers.setdefault(verdict.answer, len(numbers))
        cut = completion.finish_reason == "length"
        rows.append((verdict.outcome == "correct", vote, len(completion.token_ids), cut, ungradable))
    return torch.tensor(rows, dtype=torch.int64).view(-1, n, len(FIELDS))


def measure(table: Tensor, k: Sequence[int]) -> dict[str, float]:
    """The numbers of a benchmark, each the same whatever the order of its prompts.

    maj@k is left out where a right completion names no answer: the task then gives none to vote with.

    Args:
        table: (Q, n, len(FIELDS)) int64 with Q at least 1.
        k: each from 1 to n.
    """
    correct, vote, tokens, truncated, ungradable = table.cpu().unbind(-1)
    prompts, n = correct.shape
    right, completions = correct.sum(1), prompts * n
    accuracy = int(right.sum()) / completions
    low, high = accuracy_interval(right.double() / n, n)
    values = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "prompts": float(prompts),
        "tokens_per_completion": int(tokens.sum()) / completions,
        "truncated": int(truncated.sum()) / completions,
        "ungradable": int(ungradable.sum()) / completions,
    }
    all_vote = not bool(((correct == 1) & (vote == NO_VOTE)).any())
    for size in k:
        values[f"avg@{size}"] = accuracy
        values[f"pass@{size}"] = fsum(pass_at_k(right, n, size).tolist()) / prompts
        if all_vote:
            values[f"maj@{size}"] = fsum(_majorities(vote, correct, size)) / prompts
    return values


def _majorities(vote: Tensor, correct: Tensor, k: int) -> list[float]:
    return [
        majority_at_k([None if v == NO_VOTE else v for v in votes], judged, k)
        for votes, judged in zip(vote.tolist(), correct.tolist(), strict=True)
    ]


class BenchmarkMetric(Metric):
    """The numbers of a benchmark over all ranks: every completion is gathered, so they are those of one process.

    Args:
        n: completions of each prompt.
        k: of avg@k, pass@k and maj@k.
    """

    full_state_update = False
    table: list[Tensor]

    def __init__(self, n: int, k: Sequence[int] = ()) -> None:
        super().__init__()
        self.n, self.k = n, tuple(k)
        self.add_state("table", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # Never an empty list: a rank without prompts would gather another shape and type than the others.
        self.table.append(torch.zeros(0, self.n, len(FIELDS), dtype=torch.int64, device=self.device))

    def update(self, batch: EvaluationBatch) -> None:
        self.table.append(table_of(batch.completions, batch.verdicts, self.n).to(self.device))

    def compute(self) -> dict[str, float]:
        return measure(dim_zero_cat(self.table), self.k)
