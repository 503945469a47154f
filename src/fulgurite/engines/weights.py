"""Checksums that tell whether the weights an engine holds are those it was given.

The checksum of a tensor is a pair modulo 2^64: the sum of its elements' bits, read as integers, and the same sum with each
weighted by its place. It is exact, sees a change of order, and that of tensors laid end to end follows from theirs: engines
keep query, key and value, or gate and up, as one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

Checksum = tuple[int, int]
Fingerprint = list[tuple[tuple[str, ...], int, Checksum]]
"""(names of the streamed weights that a tensor is made of, its elements, its checksum) for each tensor that can be read"""

PIECE = 2**24
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: Tensor) -> Tensor:
    """(2,) int64 on the tensor's device: the sum of the bits and the sum weighted by place."""
    bits = tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()])
    plain = torch.zeros((), dtype=torch.int64, device=bits.device)
    placed = plain.clone()
    for start in range(0, len(bits), PIECE):
        piece = bits[start : start + PIECE].long()
        total = piece.sum()
        plain += total
        placed += (piece * torch.arange(len(piece), device=bits.device)).sum() + start * total
    return torch.stack([plain, placed])


class ChecksummedWeights:
    """Streamed weights, cast to `dtype`, whose checksums are taken as they pass.

    Attributes:
        sizes: {name: elements} of the weights that passed.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
        self.weights, self.dtype = weights, dtype
        self.sizes: dict[str, int] = {}
        self._sums: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self.weights:
            weight = weight.to(self.dtype)
            self.sizes[name] = weight.numel()
            self._sums.append(checksum(weight))
            yield name, weight

    def checksums(self) -> dict[str, tuple[int, Checksum]]:
        """{name: (elements, checksum)} of the weights that passed."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        return {name: (size, tuple(total)) for (name, size), total in zip(self.sizes.items(), sums, strict=True)}


Read = list[tuple[list[str], int, list[int], str]]
"""(names of the weights a tensor is made of, its elements, its checksum, its dtype) of the tensors that a worker can read"""


class WorkerChecksums:
    """Mixed into the workers of vLLM, in this process or on a server, through its option `worker_extension_cls`."""

    def weight_checksums(self) -> Read:
        """A packed layer has no readable tensor; a shard has fewer elements than the weights that it is named for."""
        model = self.model_runner.get_model()
        fused = getattr(model, "packed_modules_mapping", {})
        read = {name: weight for name, weight in model.named_parameters() if weight.numel()}
        sums = torch.stack([checksum(weight) for weight in read.values()]).tolist()
        return [
            (parts_of(name, fused), weight.numel(), total, str(weight.dtype).removeprefix("torch."))
            for (name, weight), total in zip(read.items(), sums, strict=True)
        ]


def merged(workers: list[Read], dtype: torch.dtype, tied: Mapping[str, str]) -> Fingerprint:
    """The fingerprint of an engine from what its workers could read, tensors of another dtype left out."""
    wanted = str(dtype).removeprefix("torch.")
    return [
        (tuple(tied.get(name, name) for name in names), size, tuple(total))
        for read in workers
        for names, size, total, kind in read
        if kind == wanted
    ]


def untied(weights: Iterable[tuple[str, Tensor]], tied: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Every weight under each of its names."""
    for name, weight in weights:
        yield name, weight
        for other, first in tied.items():
            if first == name:
                yield other, weight


def parts_of(name: str, fused: Mapping[str, list[str]]) -> list[str]:
    """The streamed names behind a parameter of the engine: `a.qkv_proj.weight` is `a.q_proj.weight` and two more."""
    path = name.split(".")
    for i, part in enumerate(path):
        if part in fused:
            return [".".join([*path[:i], original, *path[i + 1 :]]) for original in fused[part]]
    return [name]
