"""Rows without their padding, in which what rows begin with in common is there once.

What acts on each token by itself, nearly all of a model, sees one line of the tokens that matter: a prompt once, then what each
of its completions has of its own. Attention alone sees rows: queries, keys and values are copied from the line to where they
stand in their rows, and the answers back. A completion so sees its prompt and itself, as in a row of its own. Where a prompt is
long, it answers once too, and a completion only asks.

Letters: N rows of L tokens, K of them kept; U tokens in the line; in one attention R rows of T tokens that ask S tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

MASKED_PAIR = {"cuda": 4.0}
"""Cost of a pair of tokens under a mask, in that of plain causal attention: on a GPU kernels with a mask are slower."""


class Asking(NamedTuple):
    """Rows of one attention, as places in the line. Some place of the line is in what follows the end of a row; its answer is
    not read.

    Attributes:
        askers: (R, T) int64. asked: (R, S) int64.
        mask: (R, 1, T, S) bool, who sees whom; None where `askers` are those asked and see themselves and all before them.
    """

    askers: Tensor
    asked: Tensor
    mask: Tensor | None


class Packing(NamedTuple):
    """The line, and where its tokens are in rows.

    Attributes:
        source: (U,) int64, places in the flattened (N, L) tokens.
        positions: (U,) int64, of the tokens in their rows.
        attentions: what is computed one after the other.
        homes: (U,) int64, the place of each token of the line in the flattened (R, T) of all attentions laid end to end.
        places: (K,) int64, places in the line of those that predict the kept tokens, in the row-major order of `keep`.
    """

    source: Tensor
    positions: Tensor
    attentions: list[Asking]
    homes: Tensor
    places: Tensor


def spread(states: Tensor, places: Tensor) -> Tensor:
    """(R, heads, T, width) states of a line (1, heads, U, width) at places (R, T)."""
    heads, _, width = states.shape[1:]
    return embedding(places, states[0].transpose(0, 1).flatten(1)).unflatten(-1, (heads, width)).transpose(1, 2)


def pack(tokens: Tensor, keep: Tensor) -> Packing | None:
    """The line of the rows that have a kept token; None where it is hardly shorter than the rows.

    Rows share what is before their first kept token, where that is the same.

    Args:
        tokens: (N, L) int64, right-padded. keep: (N, L) bool, the tokens to score.
    """
    device, length = tokens.device, tokens.shape[1]
    tokens, keep = tokens.cpu(), keep.cpu()
    used = keep.any(1).nonzero().flatten()
    if not len(used):
        return None
    first = keep[used].int().argmax(1)
    last = length - 1 - keep[used].flip(1).int().argmax(1)
    rows = torch.zeros(len(used), int(last.max()), dtype=torch.int64)
    source, starts, fresh, size = [], {}, [], 0
    for row, number, begin, end in zip(rows, used.tolist(), first.tolist(), last.tolist(), strict=True):
        start = starts.setdefault(tokens[number, :begin].numpy().tobytes(), size)
        fresh.append(0 if start == size else begin)
        new = torch.arange(fresh[-1], end)
        row[:begin] = torch.arange(start, start + begin)
        row[new] = torch.arange(size, size + len(new))
        source.append(new + number * length)
        size += len(new)
    if size > 0.95 * len(tokens) * (length - 1):
        return None
    attentions, read = zip(*_attentions(rows, first, last, torch.tensor(fresh), MASKED_PAIR.get(device.type, 1.0)), strict=True)
    homes = torch.zeros(size, dtype=torch.int64)
    answered = torch.cat([asking.askers[which] for asking, which in zip(attentions, read, strict=True)])
    homes[answered] = torch.cat([which.flatten() for which in read]).nonzero().flatten()
    source, places = torch.cat(source), rows[keep[used, 1 : rows.shape[1] + 1]]
    attentions = [Asking(*(part if part is None else part.to(device) for part in asking)) for asking in attentions]
    return Packing(source.to(device), (source % length).to(device), attentions, homes.to(device), places.to(device))


def _attentions(rows: Tensor, first: Tensor, last: Tensor, fresh: Tensor, masked_pair: float) -> list[tuple[Asking, Tensor]]:
    """The cheaper of two ways, each attention with the (R, T) askers whose answers are read: whole rows; or what rows begin
    with, and then their rest.

    Args:
        rows: (R, S) places in the line. first, last: (R,) of the kept tokens. fresh: (R,) the first place no row before has.
    """
    position, rest, begins = torch.arange(rows.shape[1]), last - first, fresh == 0
    beginning, longest_rest = int(first.max()), int(rest.max())
    whole = len(rows) * rows.shape[1] ** 2 / 2
    parted = int(begins.sum()) * beginning**2 / 2 + masked_pair * len(rows) * longest_rest * rows.shape[1]
    if whole <= parted or not longest_rest:
        return [(Asking(rows, rows, None), (position >= fresh[:, None]) & (position < last[:, None]))]
    step = torch.arange(longest_rest)
    own = first[:, None] + step
    shared = rows[begins, :beginning]
    askers = rows.gather(1, own.clamp(max=len(position) - 1))
    return [
        (Asking(shared, shared, None), position[:beginning] < first[begins, None]),
        (Asking(askers, rows, (position <= own[:, :, None])[:, None]), step < rest[:, None]),
    ]
