"""Checksums that tell whether the weights an engine holds are those it was given.

The checksum of a tensor is the sum of its elements' bits, read as integers, modulo 2^64. It is exact, needs no memory, and that
of concatenated tensors is the sum of theirs: engines keep query, key and value, or gate and up, as one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

Fingerprint = list[tuple[tuple[str, ...], int, int]]
"""(names of the streamed weights that a tensor is made of, its elements, its checksum) for each tensor that can be read"""

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: Tensor) -> Tensor:
    """The checksum as a 0-dimensional int64 tensor on the tensor's device."""
    bits = tensor.detach().contiguous().view(BITS[tensor.element_size()])
    return bits.sum(dtype=torch.int64)


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

    def checksums(self) -> dict[str, int]:
        """{name: checksum} of the weights that passed."""
        return dict(zip(self.sizes, torch.stack(self._sums).tolist() if self._sums else [], strict=True))


Read = list[tuple[list[str], int, int, str]]
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
        (tuple(tied.get(name, name) for name in names), size, total)
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
