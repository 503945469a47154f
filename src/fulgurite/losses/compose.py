"""One loss algebra: loss = sum over components of weight * sum / denominator, each denominator taken over the whole update.

So the gradient depends neither on how rows are cut into micro-batches nor on how they are spread over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Minibatch, Segment
from .aggregate import Aggregation, denominator


@dataclass(frozen=True)
class Component:
    """A term of the loss.

    Args:
        weight: its factor in the loss.
        aggregation: how tokens become one number.
        segments: the tokens it reads; none given means the whole completion.
        stream: the coefficient stream it reads; rows whose coefficient is 0 then add nothing. None: every row counts.
        const_len: tokens per row in the denominator of `seq_mean_token_sum_const`.
        model: the trained model whose gradient it is.
    """

    weight: float
    aggregation: Aggregation
    segments: tuple[Segment, ...] = ()
    stream: str | None = None
    const_len: int | None = None
    model: str = "policy"

    def keep(self, rows: Minibatch) -> Tensor:
        """(N, L) bool: the tokens it reads."""
        return rows.keep(*self.segments)

    def denominator(self, rows: Minibatch) -> Tensor:
        """Scalar; the denominators of parts of an update add up to that of the update."""
        return denominator(self.keep(rows), self.aggregation, self.const_len)


def rows_that_matter(rows: Minibatch, components: Mapping[str, Component]) -> Tensor:
    """(N,) bool: rows that some component reads with a coefficient other than exactly 0; the rest need no forward pass."""
    streams = [component.stream for component in components.values()]
    read = rows.read_rows()
    if None in streams:
        return read
    return read & torch.stack([rows.coefficients[stream] != 0 for stream in streams]).any(0)


def compose(sums: Mapping[str, Tensor], components: Mapping[str, Component], denominators: Mapping[str, float]) -> Tensor:
    """The scalar loss of a micro-batch; a component whose denominator is 0 adds 0."""
    parts = [
        component.weight / denominators[name] * sums[name] if denominators[name] else 0.0 * sums[name]
        for name, component in components.items()
    ]
    return torch.stack(parts).sum()
