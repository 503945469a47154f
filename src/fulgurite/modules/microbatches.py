"""Cutting a minibatch into micro-batches by a token budget: memory only, never the result."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..types import Minibatch, Segment


def split_by_tokens(rows: Minibatch, tokens_per_microbatch: int, packs: bool = False) -> list[Tensor]:
    """Row indices of each micro-batch, rows x longest row within the budget: rows of similar length together or, where the
    model packs what they share and that leaves fewer tokens to compute, rows of one prompt.

    Args:
        tokens_per_microbatch: budget in tokens, padding included. A single longer row gets a micro-batch of its own.
        packs: the model computes once what the rows of a micro-batch have in common.
    """
    lengths = rows.lengths()
    by_length = torch.argsort(lengths, descending=True, stable=True)
    apart = _cut(by_length, lengths, tokens_per_microbatch)
    if len(apart) < 2 or not packs:
        return apart
    prompts = rows.segments == int(Segment.PROMPT)
    group = torch.unique(torch.where(prompts, rows.tokens, -1), dim=0, return_inverse=True)[1]
    longest = torch.zeros_like(lengths).scatter_reduce(0, group, lengths, "amax")[group]
    order = by_length[torch.argsort(group[by_length], stable=True)]
    order = order[torch.argsort(longest[order], descending=True, stable=True)]
    together = _cut(order, lengths, tokens_per_microbatch)
    prompt = prompts.sum(1)

    def computed(parts: list[Tensor]) -> int:
        return sum(int((lengths - prompt)[part].sum() + _of_each(group[part], prompt[part])) for part in parts)

    return together if computed(together) < 0.8 * computed(apart) else apart


def _cut(order: Tensor, lengths: Tensor, budget: int) -> list[Tensor]:
    widths = lengths[order].tolist()
    batches, start = [], 0
    while start < len(widths):
        end, widest = start, 0
        while end < len(widths) and (end == start or max(widest, widths[end]) * (end + 1 - start) <= budget):
            widest = max(widest, widths[end])
            end += 1
        batches.append(order[start:end])
        start = end
    return batches


def _of_each(group: Tensor, prompt: Tensor) -> Tensor:
    """Tokens of the prompts, each counted once."""
    return prompt.new_zeros(int(group.max()) + 1).scatter_reduce(0, group, prompt, "amax").sum()


def idle_microbatch(rows: Minibatch) -> Minibatch:
    """One row that keeps no token: a rank that has run out of rows still takes part in every forward and backward pass."""
    device = rows.tokens.device
    return replace(
        rows,
        tokens=torch.zeros(1, 2, dtype=torch.int64, device=device),
        segments=torch.full((1, 2), int(Segment.PROMPT), dtype=torch.uint8, device=device),
        coefficients={k: torch.zeros(1, device=device) for k in rows.coefficients},
        columns={k: torch.zeros(1, 2, device=device) for k in rows.columns},
    )
