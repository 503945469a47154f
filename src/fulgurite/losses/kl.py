"""Kullback-Leibler divergences of the trained policy to a reference, in nats.

Estimators on the sampled token, with d = logp - ref (J. Schulman, "Approximating KL divergence", 2020):

    k1 = d                      mean value KL(policy || reference); its gradient has mean 0
    k2 = d^2 / 2                mean gradient that of KL(policy || reference)
    k3 = exp(-d) - 1 + d        mean value KL(policy || reference), never negative; mean gradient that of
                                KL(reference || policy). The penalty of GRPO, arXiv 2402.03300, eq. 4

`reverse_kl` is exact over the vocabulary.

Differs from the paper: in k3 the difference is limited to [-20, 20] in both places, with gradient 0 outside. Limited
inside the exponential only, it would push tokens far below the reference further down.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import ConfigError
from .aggregate import wide
from .ratio import LOG_RATIO_CLAMP

Estimator = Literal["k1", "k2", "k3"]


def token_kl(logp: Tensor, ref: Tensor, estimator: Estimator, keep: Tensor | None = None) -> Tensor:
    """The estimator at each token, (N, T), float32 or wider.

    Args:
        logp: (N, T) log-probabilities of the sampled tokens in nats, the only input with a gradient.
        ref: (N, T) the same under the reference.
        estimator: see the table of this file.
        keep: (N, T) bool, true = kept; elsewhere the value and the gradient are 0 whatever the inputs hold.

    Raises:
        ConfigError: an unknown estimator.
    """
    if estimator not in get_args(Estimator):
        raise ConfigError(f"the KL estimator is {estimator!r}; expected one of {', '.join(get_args(Estimator))}")
    difference = wide(logp) - wide(ref.detach())
    if keep is not None:
        difference = torch.where(keep, difference, 0)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    difference = difference.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    return torch.expm1(-difference) + difference


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher) of whole distributions, (...), times temperature^2; the gradient reaches the student only.

    Args:
        student_logits: (..., V). teacher_logits: (..., V'). Where V differs from V' (padded vocabularies) both are cut
            to the smaller size before the softmax. Positions do not mix: leave out those not wanted beforehand.
        temperature: divides both logits; the factor temperature^2 keeps the size of the gradient.

    Raises:
        ConfigError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature of the divergence is {temperature}; expected a positive number")
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student = (wide(student_logits[..., :size]) / temperature).log_softmax(-1)
    teacher = (wide(teacher_logits[..., :size].detach()) / temperature).log_softmax(-1)
    return temperature**2 * (student.exp() * (student - teacher)).sum(-1)
