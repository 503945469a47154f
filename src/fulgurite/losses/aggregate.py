"""From values per token to one number: a weighted sum here, its denominator beside it.

With n_i kept tokens in row i and N rows, rows without a kept token included:

    loss = weighted_sum / denominator
    seq_mean_token_mean        sum_i (1/n_i) sum_t v_it   /  N                 GRPO, arXiv 2402.03300
    token_mean                 sum_i sum_t v_it           /  sum_i n_i         DAPO, arXiv 2503.14476
    seq_mean_token_sum_const   sum_i sum_t v_it           /  (N * const_len)   Dr. GRPO, arXiv 2503.20783
    seq_mean_token_sum         sum_i sum_t v_it           /  N

Both halves add up over any split of the rows. So the caller sums denominators over micro-batches and ranks before the
first backward, and gradients depend on neither. Denominator 0 (nothing kept) gives loss 0 and gradient 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError

Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum_const", "seq_mean_token_sum"]


def weighted_sum(values: Tensor, keep: Tensor, mode: Aggregation, weight: Tensor | None = None) -> Tensor:
    """The sum over kept tokens, without the denominator: a scalar in float32 or wider.

    Args:
        values: (N, T); what masked positions hold is never read.
        keep: (N, T) bool, true = kept.
        mode: decides whether a row is divided by its number of kept tokens.
        weight: (N,) or (N, T), detached; multiplies the values and leaves the denominator alone.

    Raises:
        ConfigError: an unknown mode.
    """
    _check(mode)
    kept = torch.where(keep, wide(values), 0)
    if weight is not None:
        kept = kept * per_token(weight, keep)
    rows = kept.sum(1)
    if mode == "seq_mean_token_mean":
        rows = rows / keep.sum(1).clamp(min=1)
    return rows.sum()


def denominator(keep: Tensor, mode: Aggregation, const_len: int | None = None) -> Tensor:
    """What `weighted_sum` is divided by: an int64 scalar that adds up over splits of the rows.

    Args:
        keep: (N, T) bool, true = kept.
        mode: see the table of this file.
        const_len: tokens that every row counts for; read by `seq_mean_token_sum_const` only.

    Raises:
        ConfigError: an unknown mode, or `seq_mean_token_sum_const` without a positive const_len.
    """
    _check(mode)
    if mode == "token_mean":
        return keep.sum()
    if mode != "seq_mean_token_sum_const":
        return torch.tensor(len(keep), device=keep.device)
    if const_len is None or const_len < 1:
        raise ConfigError(f"const_len is {const_len}; {mode} expects at least 1: set it to the longest completion in tokens")
    return torch.tensor(len(keep) * const_len, device=keep.device)


def per_token(coefficient: Tensor, keep: Tensor) -> Tensor:
    """A constant per row (N,) or per token (N, T) as (N, T): detached, float32 or wider, 0 where not kept."""
    spread = coefficient[:, None] if coefficient.dim() == 1 else coefficient
    return torch.where(keep, wide(spread.detach()), 0)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_const_len(mode: Aggregation, const_len: int | None) -> None:
    """
    Raises:
        ConfigError: an unknown mode; `seq_mean_token_sum_const` without a positive const_len, or another mode with one.
    """
    _check(mode)
    if (mode == "seq_mean_token_sum_const") != (const_len is not None):
        raise ConfigError(
            f"aggregation is {mode} and const_len is {const_len}; const_len belongs to seq_mean_token_sum_const, and to "
            "nothing else"
        )
    if const_len is not None and const_len < 1:
        raise ConfigError(f"const_len is {const_len}; expected at least 1: the longest completion in tokens")


def _check(mode: str) -> None:
    if mode not in get_args(Aggregation):
        raise ConfigError(f"the aggregation is {mode!r}; expected one of {', '.join(get_args(Aggregation))}")
