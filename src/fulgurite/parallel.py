"""Several processes: the `fsdp2` strategy, sums over ranks, and errors that no rank is left alone with."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes; models shard themselves in `configure_model`.

    Args:
        save_distributed_checkpoint: write a folder of shards instead of one file.
        gather_dtype: of the weights that are gathered for a layer. `bfloat16` halves what is sent and held; gradients are
            summed in float32, and the shards that the optimizer steps on stay float32.
        cpu_offload: shards, gradients and the optimizer's state are in the memory of the host; a layer is on the GPU while
            it runs.
        reshard_after_forward: drop a decoder layer's gathered weights after its forward pass and gather them again for the
            backward pass: less memory, more traffic.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        gather_dtype: Literal["float32", "bfloat16"] = "float32",
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        **kwargs: Any,
    ) -> None:
        if cpu_offload:
            kwargs.setdefault("process_group_backend", "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            **kwargs,
        )
        self.gather_dtype, self.cpu_offload, self.reshard_after_forward = gather_dtype, cpu_offload, reshard_after_forward

    @property
    def policies(self) -> dict[str, Any]:
        """Arguments of `fully_shard`."""
        chosen: dict[str, Any] = {"reshard_after_forward": self.reshard_after_forward}
        if self.gather_dtype == "bfloat16":
            chosen["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if self.cpu_offload:
            chosen["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        return chosen

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        if self.cpu_offload:
            _optimizers_to_device(self.optimizers, torch.device("cpu"))

    def model_to_device(self) -> None:
        """With `cpu_offload` moves the buffers alone: a moved shard would no longer be the one that FSDP2 reads."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))


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


PARENT = os.getppid()
LOOK_EVERY_S = 2.0


def ended_ranks(trainer: L.Trainer) -> str:
    """Of the processes that Lightning started, or that started this one, those that ended before it; empty where none did."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    codes = {rank: process.poll() for rank, process in enumerate(started, start=1)}
    ended = [f"rank {rank} (exit code {code})" for rank, code in codes.items() if code]
    return ", ".join(["rank 0"] * _is_orphan() + ended)


def end_with_rank_0() -> None:
    """In a process that Lightning started: ends it once rank 0 is gone, which a GPU's collectives would wait for."""

    def watch() -> None:
        while not _is_orphan():
            time.sleep(LOOK_EVERY_S)
        print("error: rank 0 ended, and the others cannot go on without", file=sys.stderr, flush=True)
        os._exit(1)

    if _started_by_lightning():
        threading.Thread(target=watch, daemon=True).start()


def _is_orphan() -> bool:
    return _started_by_lightning() and os.getppid() != PARENT


def _started_by_lightning() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


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
