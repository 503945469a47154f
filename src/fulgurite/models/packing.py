"""Rows without their padding, in which what rows begin with in common is there once.

What acts on each token by itself, nearly all of a model, sees one line of the tokens that matter: a prompt once, then what each
of its completions has of its own. Attention alone sees rows: queries, keys and values are copied from the line to where they
stand in their rows, and the answers back. A completion so sees its prompt and itself, as in a row of its own.

Letters: N rows of L tokens, K of them kept; U tokens in the line; R rows of T tokens in attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding


class Packing(NamedTuple):
    """The line, and where its tokens are in rows.

    Attributes:
        source: (U,) int64, places in the flattened (N, L) tokens.
        positions: (U,) int64, of the tokens in their rows.
        rows: (R, T) int64, places in the line; what follows the end of a row is 0, which nothing before it sees.
        homes: (U,) int64, a place in the flattened (R, T) of each token of the line.
        places: (K,) int64, places in the line of those that predict the kept tokens, in the row-major order of `keep`.
    """

    source: Tensor
    positions: Tensor
    rows: Tensor
    homes: Tensor
    places: Tensor

    def apart(self, states: Tensor) -> Tensor:
        """(R, heads, T, width) of the line's (1, heads, U, width)."""
        heads, _, width = states.shape[1:]
        return embedding(self.rows, states[0].transpose(0, 1).flatten(1)).unflatten(-1, (heads, width)).transpose(1, 2)

    def together(self, states: Tensor) -> Tensor:
        """(1, U, heads, width) of the rows' (R, T, heads, width)."""
        return embedding(self.homes, states.flatten(0, 1).flatten(1)).unflatten(-1, states.shape[2:])[None]


def pack(tokens: Tensor, keep: Tensor) -> Packing | None:
    """The line of the rows that have a kept token; None where it is hardly shorter than the rows.

    Rows share what is before their first kept token, where that is the same.

    Args:
        tokens: (N, L) int64, right-padded. keep: (N, L) bool, the tokens to score.
    """
    device, length = tokens.device, tokens.shape[1]
    tokens, keep = tokens.cpu(), keep.cpu()
    first = keep.int().argmax(1).tolist()
    last = (length - 1 - keep.flip(1).int().argmax(1)).tolist()
    used = keep.any(1).nonzero().flatten().tolist()
    longest = max((last[number] for number in used), default=0)
    rows = torch.zeros(len(used), longest, dtype=torch.int64)
    source, homes, starts, size = [], [], {}, 0
    for i, number in enumerate(used):
        begin, end = first[number], last[number]
        start = starts.setdefault(tokens[number, :begin].numpy().tobytes(), size)
        new = torch.arange(0 if start == size else begin, end)
        rows[i, :begin] = torch.arange(start, start + begin)
        rows[i, new] = torch.arange(size, size + len(new))
        source.append(new + number * length)
        homes.append(new + i * longest)
        size += len(new)
    if size > 0.95 * len(tokens) * (length - 1) or not used:
        return None
    source, homes = torch.cat(source), torch.cat(homes)
    places = rows[keep[used, 1 : longest + 1]]
    return Packing(*(part.to(device) for part in (source, source % length, rows, homes, places)))
