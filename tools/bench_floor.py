"""What a step of GRPO must compute and move at the least, and how fast this machine computes and moves.

A matrix product of m x k with k x n is 2mkn operations. Softmax, norms and activation functions are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

BACKWARD = 2.0
"""Operations of a backward pass in those of its forward pass: one product for the inputs' gradient, one for the weights'."""


@dataclass(frozen=True)
class Shape:
    """Of a Qwen2 or Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def matrix_weights(self) -> int:
        """In the layers: queries, keys, values, output, and the three of the gated feed-forward part."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate)

    @property
    def kv_per_token(self) -> int:
        """Numbers in the key-value cache of a token."""
        return 2 * self.layers * self.hidden * self.kv_heads // self.heads

    def layers_flops(self, tokens: int, pairs: int) -> int:
        """Of a forward pass through the layers; `pairs` are the (query, key) pairs that attention looks at."""
        return 2 * self.matrix_weights * tokens + 4 * self.layers * self.hidden * pairs

    def head_flops(self, tokens: int) -> int:
        return 2 * self.hidden * self.vocabulary * tokens


@dataclass(frozen=True)
class Work:
    """Of one phase: floating-point operations, and bytes that must cross the memory bus."""

    flops: float
    bytes: float

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The larger of the two times: no program is faster."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


def causal_pairs(start: int, length: int) -> int:
    """(query, key) pairs of `length` tokens that follow `start` others."""
    return length * start + length * (length + 1) // 2


def generation(shape: Shape, prompts: list[int], completions: list[list[int]], width: int) -> Work:
    """Each prompt through the layers once, one head product a token drawn; in each step the weights are read once, and the keys
    and values of the rows still going.

    Args:
        prompts: tokens of each. completions: tokens of each completion of each prompt. width: bytes of a number.
    """
    flops = sum(shape.layers_flops(p, causal_pairs(0, p)) + shape.head_flops(1) for p in prompts)
    cached = 0
    for prompt, lengths in zip(prompts, completions, strict=True):
        for length in lengths:  # the last token drawn goes through no layer
            pairs = causal_pairs(prompt, length - 1)
            flops += shape.layers_flops(length - 1, pairs) + shape.head_flops(length - 1)
            cached += pairs * shape.kv_per_token
    steps = max(max(lengths) for lengths in completions)
    weights = shape.matrix_weights + shape.hidden * shape.vocabulary
    return Work(flops, width * (steps * weights + cached))


def update(shape: Shape, prompts: list[int], completions: list[list[int]], width: int, weights: int) -> Work:
    """Forward and backward pass of each prompt once and of its completions, and one step of Adam.

    Args:
        prompts, completions, width: as in `generation`.
        weights: of the whole model, all trained in float32.
    """
    flops = 0.0
    for prompt, lengths in zip(prompts, completions, strict=True):
        flops += shape.layers_flops(prompt, causal_pairs(0, prompt))
        for length in lengths:  # the last token predicts nothing
            flops += shape.layers_flops(length - 1, causal_pairs(prompt, length - 1)) + shape.head_flops(length)
    adam = 7 * 4 * weights  # reads weight, gradient and both moments, writes weight and both moments
    return Work((1 + BACKWARD) * flops, adam + 3 * width * weights)


def rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """(operations, bytes) per second that a large matrix product and a large copy reach here, the best of several."""
    cpu = device == "cpu"
    size, count = (1024, 2**25) if cpu else (8192, 2**30)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.empty(count, dtype=torch.float32, device=device).fill_(i) for i in range(2))
    product = _best(lambda: left @ right, device)
    copy = _best(lambda: target.copy_(source), device)
    return 2 * size**3 / product, 2 * 4 * count / copy


def _best(work, device: str, repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
