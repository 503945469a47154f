"""Coefficients along the Tsallis continuum from reinforcement to maximum likelihood: GARL and PAFT, arXiv 2604.25907.

With w_m in [0, 1] the weight of the m-th of M completions of a prompt, P their mean and P_-m the mean of the others,

    loss        l_q = (1 - P^(1-q)) / (1 - q), and -log P at q = 1                  eq. 1-5
    GARL        score coefficient    c_m = w_m / P^q - P_-m^(1-q)                   eq. 7-12
                answer coefficient   b_m = w_m / P^q
    PAFT        both                 P^(1-q) n_m M / K, with n_m the times m is among K drawn with chances w_m / sum w
                                                                                    eq. 13-14

all to be multiplied by the log-probability of row m and averaged over rows. q = 0 is leave-one-out reinforcement, q = 1 is
importance-weighted likelihood.

Everything is computed from log w_m, which may be -inf, in float64: weights such as exp(-500) are ordinary.

Differs from the paper:
- `p_min`: where P^-q amplifies, P is taken as at least p_min, in the baseline too;
- 0^0 is 1 in P_-m^0, and a prompt whose weights are all 0 has coefficients 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tsallis_loss(log_p: Tensor, q: float) -> Tensor:
    """l_q of the mean weights, from their logarithms (Q,): 1 - P at q = 0, -log P at q = 1."""
    return -log_p if abs(1 - q) < 1e-6 else -torch.expm1((1 - q) * log_p) / (1 - q)


def log_mean(log_w: Tensor) -> Tensor:
    """(Q,) log of the mean weight of each prompt; log_w: (Q, M)."""
    return log_w.double().logsumexp(1) - math.log(log_w.shape[1])


def log_mean_of_others(log_w: Tensor) -> Tensor:
    """(Q, M) log of the mean weight without the own one; log_w: (Q, M), M at least 2."""
    count = log_w.shape[1]
    others = log_w.double()[:, None, :].masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    return others.logsumexp(2) - math.log(count - 1)


def garl(log_w: Tensor, q: float, leave_one_out: bool = True, p_min: float = 0.0) -> tuple[Tensor, Tensor]:
    """Coefficients c and b, (Q, M) float64 each; c = b without `leave_one_out`.

    Args:
        log_w: (Q, M) logarithms of the weights, -inf for 0.
        q: from 0 to 1.
        leave_one_out: subtract the baseline; needs M of at least 2.
        p_min: amplification is capped at p_min^-q.
    """
    log_p = log_mean(log_w)[:, None]
    b = torch.exp(log_w.double() - q * _floored(log_p, p_min))
    b = torch.where(log_p == -torch.inf, 0.0, b)
    if not leave_one_out:
        return b, b
    baseline = _attenuated(log_mean_of_others(log_w), q, p_min)
    return torch.where(log_p == -torch.inf, 0.0, b - baseline), b


def paft(log_w: Tensor, counts: Tensor, q: float, p_min: float = 0.0) -> Tensor:
    """Coefficients (Q, M) float64 of rows drawn `counts` (Q, M) times; the rest as in `garl`."""
    log_p = log_mean(log_w)[:, None]
    drawn = counts.double() * counts.shape[1] / counts.sum(1, keepdim=True)
    return torch.where(log_p == -torch.inf, 0.0, _attenuated(log_p, q, p_min) * drawn)


def resample(log_w: Tensor, points: Tensor) -> Tensor:
    """(Q, M) int64: how many of the K points of [0, 1), (Q, K), fall to each row's share w_m / sum w; (Q, M) log_w.

    Independent uniform points draw with replacement, points (u + k) / K systematically. A prompt without weight draws evenly.
    """
    dead = (log_w == -torch.inf).all(1, keepdim=True)
    shares = torch.where(dead, 0.0, log_w.double()).softmax(1).cumsum(1)
    last = (shares == shares[:, -1:]).int().argmax(1, keepdim=True)
    place = torch.minimum(torch.searchsorted(shares, points.double(), right=True), last)
    return torch.zeros(log_w.shape, dtype=torch.int64).scatter_add(1, place, torch.ones_like(place))


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Q,) (sum w)^2 / sum w^2 from 1 to M of weights (Q, M); 0 where all are 0."""
    log_w = log_w.double()
    size = torch.exp(2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1))
    return torch.where((log_w == -torch.inf).all(1), 0.0, size)


def _floored(log_p: Tensor, p_min: float) -> Tensor:
    return log_p.clamp(min=math.log(p_min)) if p_min else log_p


def _attenuated(log_p: Tensor, q: float, p_min: float) -> Tensor:
    """P^(1-q), or P max(P, p_min)^-q; 1 for P = 0 at q = 1."""
    if p_min:
        return torch.exp(log_p - q * _floored(log_p, p_min))
    return torch.exp((1 - q) * log_p) if q != 1 else torch.ones_like(log_p)
