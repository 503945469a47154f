"""Rows that begin alike, laid out so that what they share is computed once.

The completions of a prompt are scored in one row behind one copy of it: the prompt, the first completion, the second, and so
on. A completion sees the prompt and itself, at the positions it had in a row of its own, so its hidden states are the same.
Fewer tokens go through the layers, and hardly one is padding; in exchange attention looks at all pairs of the longer row.

Letters: N rows of L tokens, K of them kept; R packed rows of W tokens.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHARED, PADDING = 0, -1
MASKED_PAIR = {"cuda": 2.0}
"""Cost of a pair under a mask, in that of a pair of plain causal attention: kernels with a mask are slower on a GPU."""


class Cost(NamedTuple):
    """Operations of a forward pass: `token` per token in the layers, `pair` per pair of tokens in attention."""

    token: float
    pair: float


@dataclass(frozen=True)
class Packing:
    """Where each token of the packed rows comes from, and where the states of the kept tokens are.

    Attributes:
        source: (R, W) int64, places in the flattened (N, L) tokens.
        positions: (R, W) int64, of the tokens in their own rows.
        part: (R, W) int64: `SHARED`, the number of a completion from 1, or `PADDING`.
        places: (K,) int64, places in the flattened (R, W) states of those that predict the kept tokens, in the order of `keep`.
    """

    source: Tensor
    positions: Tensor
    part: Tensor
    places: Tensor

    def mask(self) -> Tensor:
        """(R, 1, W, W) bool: what each token sees, itself at the least."""
        seen = (self.part[:, :, None] == self.part[:, None, :]) | (self.part == SHARED)[:, None, :]
        return seen.tril_()[:, None]


class _Row(NamedTuple):
    """A row's first and last kept token; its tokens from the first up to the last, which predicts nothing, are its own."""

    number: int
    first: int
    last: int

    @property
    def rest(self) -> int:
        return self.last - self.first


def pack(tokens: Tensor, keep: Tensor, cost: Cost) -> Packing | None:
    """The cheapest layout of rows that share what is before their first kept token; None where rows of their own are as cheap.

    Args:
        tokens: (N, L) int64, right-padded. keep: (N, L) bool, the tokens to score.
    """
    masked = cost.pair * MASKED_PAIR.get(tokens.device.type, 1.0)
    groups = _groups(tokens.cpu(), keep.cpu())
    length = tokens.shape[1]
    plain = len(tokens) * (length - 1) * (cost.token + cost.pair * length / 2)
    best, chosen = 0.95 * plain, None
    for width in _widths(groups):
        bins = _fill(groups, width)
        widest = max(rows[0].first + sum(row.rest for row in rows) for rows in bins)
        spent = len(bins) * widest * (cost.token + masked * widest)
        if spent < best:
            best, chosen = spent, (bins, widest)
    return chosen and _lay_out(*chosen, keep.cpu(), tokens.device)


def _groups(tokens: Tensor, keep: Tensor) -> list[list[_Row]]:
    """Rows with a kept token, those of one beginning together."""
    first = keep.int().argmax(1).tolist()
    last = (keep.shape[1] - 1 - keep.flip(1).int().argmax(1)).tolist()
    groups = defaultdict(list)
    for number, row in enumerate(tokens.tolist()):
        if keep[number, first[number]]:
            groups[tuple(row[: first[number]])].append(_Row(number, first[number], last[number]))
    return list(groups.values())


def _widths(groups: list[list[_Row]]) -> list[int]:
    """Widths to try: from the longest row, doubled, up to the largest group."""
    if not groups:
        return []
    width = max(row.last for rows in groups for row in rows)
    largest = max(rows[0].first + sum(row.rest for row in rows) for rows in groups)
    widths = []
    while width < largest:
        widths.append(width)
        width *= 2
    return [*widths, largest]


def _fill(groups: list[list[_Row]], width: int) -> list[list[_Row]]:
    """The rows of each group, as many in a packed row as fit."""
    bins = []
    for rows in groups:
        free = -1
        for row in rows:
            if row.rest > free:
                bins.append([])
                free = width - row.first
            bins[-1].append(row)
            free -= row.rest
    return bins


def _lay_out(bins: list[list[_Row]], width: int, keep: Tensor, device: torch.device) -> Packing:
    length = keep.shape[1]
    source = torch.zeros(len(bins), width, dtype=torch.int64)
    part = torch.full_like(source, PADDING)
    place = torch.zeros(keep.shape, dtype=torch.int64)
    for i, rows in enumerate(bins):
        shared = rows[0].first
        source[i, :shared] = torch.arange(shared) + rows[0].number * length
        part[i, :shared] = SHARED
        end = shared
        for turn, row in enumerate(rows, start=1):
            begin, end = end, end + row.rest
            source[i, begin:end] = torch.arange(row.first, row.last) + row.number * length
            part[i, begin:end] = turn
            place[row.number, row.first] = i * width + shared - 1
            place[row.number, row.first + 1 : row.last + 1] = torch.arange(begin, end) + i * width
    parts = source, source % length, part, place[keep]
    return Packing(*(tensor.to(device) for tensor in parts))
