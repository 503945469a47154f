"""Cutting a minibatch into micro-batches by a token budget: memory only, never the result."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..types import Minibatch, Segment


def split_by_tokens(lengths: Tensor, tokens_per_microbatch: int) -> list[Tensor]:
    """Row indices of each micro-batch: rows of similar length together, rows x longest row within the budget.

    Args:
        lengths: (N,) int64, tokens of each row.
        tokens_per_microbatch: budget in tokens, padding included. A single longer row gets a micro-batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    widths = lengths[order].tolist()
    batches, start = [], 0
    while start < len(widths):
        size = max(1, tokens_per_microbatch // max(1, widths[start]))
        batches.append(order[start : start + size])
        start += size
    return batches


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
