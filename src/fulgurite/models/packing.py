"""Rows without their padding, in which what rows begin with in common is there once.

What acts on each token by itself, nearly all of a model, sees one line of the tokens that matter: a prompt once, then what each
of its completions has of its own. Attention alone sees rows: queries, keys and values are copied from the line to where they
stand in their rows, and the answers back. A completion so sees its prompt and itself, as in a row of its own. Where it is less
work a prompt asks once too, or attention sees all completions of a prompt in one row.

Letters: N rows of L tokens, K of them kept; U tokens in the line; in one attention R rows of T tokens that ask S tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

ROW, ASKER, MASKED_PAIR = 1000.0, 100.0, defaultdict(lambda: 1.5, cuda=4.0)
"""Costs of a row and of a token that asks, which do not depend on how many are asked, and of a pair of tokens under a mask, in
that of a pair of plain causal attention: from times on a CPU with 4 heads of 32. On a GPU kernels with a mask are slower."""


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
    beginnings: dict[bytes, int] = {}
    begun = zip(tokens[used].numpy(), first.tolist(), strict=True)
    owner = torch.tensor([beginnings.setdefault(row[:begin].tobytes(), number) for number, (row, begin) in enumerate(begun)])
    own = torch.where(owner == torch.arange(len(used)), 0, first)  # where what only this row has begins
    ends = (last - own).cumsum(0)
    size = int(ends[-1])
    if size > 0.95 * len(tokens) * (length - 1):
        return None
    position, start = torch.arange(int(last.max())), ends - last  # where a row would begin, were all of it in one piece
    places = torch.where(position < first[:, None], start[owner, None], start[:, None]) + position
    asked = Rows(places.where(position < last[:, None], 0), first, last, owner.unique(return_inverse=True)[1])
    attentions, read = zip(*cheapest(asked, device.type)(asked), strict=True)
    homes = torch.zeros(size, dtype=torch.int64)
    answered = torch.cat([asking.askers[which] for asking, which in zip(attentions, read, strict=True)])
    homes[answered] = torch.cat([which.flatten() for which in read]).nonzero().flatten()
    source = (used[:, None] * length + position)[asked.fresh()]
    places = asked.places[keep[used, 1 : len(position) + 1]]
    attentions = [Asking(*(part if part is None else part.to(device) for part in asking)) for asking in attentions]
    return Packing(source.to(device), (source % length).to(device), attentions, homes.to(device), places.to(device))


class Rows(NamedTuple):
    """What is asked: (R, S) places in the line; (R,) the first and last kept token, and which beginning a row has, from 0."""

    places: Tensor
    first: Tensor
    last: Tensor
    group: Tensor

    def begins(self) -> Tensor:
        """(R,) bool, the first row of each beginning."""
        return torch.cat([torch.ones(1, dtype=torch.bool), self.group[1:] > self.group[:-1].cummax(0).values])

    def fresh(self) -> Tensor:
        """(R, S) bool, the tokens that are in no row before: those of the line, in its order."""
        position = torch.arange(self.places.shape[1])
        return (position >= torch.where(self.begins(), 0, self.first)[:, None]) & (position < self.last[:, None])


def whole(rows: Rows) -> list[tuple[Asking, Tensor]]:
    """Each row by itself. This and the other ways also tell whose answers are read, (R, T) bool for each attention."""
    return [(Asking(rows.places, rows.places, None), rows.fresh())]


def parted(rows: Rows) -> list[tuple[Asking, Tensor]]:
    """What rows begin with, and then the rest of each."""
    begins, rest = rows.begins(), rows.last - rows.first
    position, step = torch.arange(rows.places.shape[1]), torch.arange(int(rest.max()))
    own = rows.first[:, None] + step
    shared = rows.places[begins, : int(rows.first.max())]
    askers = rows.places.gather(1, own.clamp(max=len(position) - 1))
    return [
        (Asking(shared, shared, None), position[: shared.shape[1]] < rows.first[begins, None]),
        (Asking(askers, rows.places, (position <= own[:, :, None])[:, None]), step < rest[:, None]),
    ]


def grouped(rows: Rows) -> list[tuple[Asking, Tensor]]:
    """Rows that begin alike behind one copy of that."""
    row, position = rows.fresh().nonzero(as_tuple=True)
    group, order = rows.group[row].sort(stable=True)
    size = group.bincount()
    column = torch.arange(len(group)) - (size.cumsum(0) - size)[group]
    places = torch.zeros(len(size), int(size.max()), dtype=torch.int64)
    part = torch.full_like(places, -1)  # 0 is what is shared
    places[group, column] = order
    part[group, column] = torch.where(position < rows.first[row], 0, row + 1)[order]
    seen = (part[:, :, None] == part[:, None, :]) | (part == 0)[:, None, :]
    return [(Asking(places, places, seen.tril_()[:, None]), part >= 0)]


def cheapest(rows: Rows, device: str) -> Callable[[Rows], list[tuple[Asking, Tensor]]]:
    """The way that costs least on a kind of device."""

    def cost(count: int, askers: int, pairs: float) -> float:
        return count * (ROW + askers * (ASKER + pairs))

    count, length = rows.places.shape
    groups, beginning, rest = int(rows.group.max()) + 1, int(rows.first.max()), int((rows.last - rows.first).max())
    masked, widest = MASKED_PAIR[device], _widest_group(rows)
    costs = {
        whole: cost(count, length, length / 2),
        parted: cost(groups, beginning, beginning / 2) + cost(count, rest, masked * length),
        grouped: cost(groups, widest, masked * widest),
    }
    return min(costs, key=costs.get) if rest else whole


def _widest_group(rows: Rows) -> int:
    return int((rows.first + torch.zeros_like(rows.last).scatter_add(0, rows.group, rows.last - rows.first)[rows.group]).max())
