"""Log-probabilities of sampled tokens from hidden states, without the tokens x vocabulary block.

The output head is applied to a few tokens at a time. The forward pass keeps one number per token (the log of the
normaliser); the backward pass makes the logits of each chunk anew and turns them into their gradient in place:

    log p(y | h) = z_y - logsumexp(z),   z = W h / temperature
    d log p(y | h) / d z_v = [v = y] - softmax(z)_v

Letters: K scored tokens, k tokens of a chunk, H hidden units, V vocabulary entries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

LOGITS_BYTES = defaultdict(lambda: 48 << 20, cuda=384 << 20)
"""Size of the logits of one chunk by kind of device: a GPU is slow on few tokens. The scorer holds two such blocks at once."""

Compare = Callable[[Tensor, slice], Tensor]
"""(logits (k, V) divided by the temperature, the chunk's place among the K tokens) -> values (k,) with gradient."""


class Scores(NamedTuple):
    """What a scoring pass returns, each (N, L), in nats, 0 where nothing was asked for.

    Attributes:
        logprobs: log-probability of each kept token, with gradient; float32 (float64 for a float64 model).
        entropy: of the distribution each kept token was drawn from, without gradient.
        compared: what `compare` made of that distribution, with gradient; None without `compare`.
    """

    logprobs: Tensor
    entropy: Tensor
    compared: Tensor | None


def head_logits(hidden: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
    """(k, V) logits of hidden states (k, H) under the head (V, H), at least float32, divided by the temperature."""
    logits = linear(hidden, weight)
    logits = logits.to(_wide(logits.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets` and the entropies of their distributions.

    Under autocast the head runs in autocast's dtype and the softmax in float32, as it would without chunks.

    Args:
        hidden: (K, H) states that predict the targets. weight: (V, H) head. targets: (K,) token ids.

    Returns:
        (K,) log-probabilities with gradient, (K,) entropies without.
    """
    device = hidden.device.type
    lowered = torch.is_autocast_enabled(device)
    hidden = hidden.to(torch.get_autocast_dtype(device) if lowered else weight.dtype)
    with torch.autocast(device, enabled=False):
        return _TokenLogprobs.apply(hidden, weight, targets, temperature)


def compare_distributions(hidden: Tensor, weight: Tensor, temperature: float, compare: Compare) -> Tensor:
    """(K,) values of `compare`, chunk by chunk; each chunk's logits are dropped and made anew in the backward pass."""

    def chunk_values(hidden_chunk: Tensor, weight: Tensor, rows: slice) -> Tensor:
        return compare(head_logits(hidden_chunk, weight, temperature), rows)

    return torch.cat(
        [
            checkpoint(chunk_values, hidden[rows], weight, rows, use_reentrant=False, preserve_rng_state=False)
            for rows in _chunks(hidden, weight)
        ]
    )


class _TokenLogprobs(torch.autograd.Function):
    """`token_logprobs` with a backward pass that never holds more than one chunk of logits."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        logprobs, entropy, normalisers = (hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype)) for _ in range(3))
        weights = None
        for rows, logits in _logit_chunks(hidden, head, temperature):
            top = logits.amax(-1)
            sampled = logits.sub_(top[:, None]).gather(1, targets[rows, None])[:, 0]
            weights = torch.exp(logits, out=None if weights is None else weights[: len(logits)])
            total = weights.sum(-1)
            logprobs[rows] = sampled - total.log()
            normalisers[rows] = top + total.log()
            entropy[rows] = total.log() - torch.linalg.vecdot(weights, logits) / total
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if ctx.needs_input_grad[1] else None
        for rows, logits in _logit_chunks(hidden, head, ctx.temperature):
            step = grad[rows, None] / ctx.temperature
            logits.sub_(normalisers[rows, None]).exp_().mul_(-step).scatter_add_(1, targets[rows, None], step)
            grad_logits = logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ head
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), hidden[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _logit_chunks(hidden: Tensor, head: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, logits (k, V), at least float32) of each chunk, to be changed in place; the memory is used again."""
    block = None
    for rows in _chunks(hidden, head):
        block = hidden.new_empty(rows.stop, len(head)) if block is None else block[: rows.stop - rows.start]
        logits = torch.mm(hidden[rows], head.t(), out=block)
        logits = logits.to(_wide(logits.dtype))
        yield rows, logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices that cover the K tokens, each with float32 logits of at most `LOGITS_BYTES`; for K = 0 one empty slice."""
    count, size = len(hidden), max(1, LOGITS_BYTES[hidden.device.type] // (4 * len(weight)))
    for start in range(0, max(count, 1), size):
        yield slice(start, min(start + size, count))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
