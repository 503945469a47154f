"""Several processes: the `fsdp2` strategy, sums over ranks, and errors that no rank is left alone with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes; models shard themselves in `configure_model`.

    Args:
        save_distributed_checkpoint: write a folder of shards instead of one file.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            **kwargs,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2, one checkpoint file")
    StrategyRegistry.register(
        "fsdp2_sharded",
        FSDP2Strategy,
        description="FSDP2, a checkpoint folder of shards",
        save_distributed_checkpoint=True,
    )


def agree(trainer: L.Trainer, doing: str, work: Callable[..., Any], *args: Any) -> Any:
    """Runs `work(*args)` on every rank; an error on one rank is raised on all, with rank and cause.

    `work` must contain no collective: a rank that failed would leave the others waiting inside it.
    """
    error = result = None
    try:
        result = work(*args)
    except Exception as caught:
        error = caught
    if trainer.world_size > 1:
        errors: list[str | None] = [None] * trainer.world_size
        dist.all_gather_object(errors, error and f"{type(error).__name__}: {error}")
        first = next((f"rank {rank}: {text}" for rank, text in enumerate(errors) if text), None)
        if first and error is None:
            raise RuntimeError(f"{doing} failed on {first}")
    if error is not None:
        raise error
    return result


def sum_over_ranks(trainer: L.Trainer, values: Tensor) -> Tensor:
    """The sum of `values` over ranks, in float64."""
    return trainer.strategy.reduce(values.to(trainer.strategy.root_device, torch.float64), reduce_op="sum")


def gather_over_ranks(trainer: L.Trainer, value: Any) -> list:
    """The `value` of every rank, rank by rank; tensors may differ in size."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def max_over_ranks(trainer: L.Trainer, value: int) -> int:
    """The largest `value` of any rank."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value, device=trainer.strategy.root_device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)
