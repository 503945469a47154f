"""What a config asks for: rows, tokens and updates, and the memory of one process, estimated before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .engines.transformers_engine import TransformersEngine
from .engines.vllm_engine import CPU_KV_CACHE_GIB, VLLMEngine
from .models.memory import BFLOAT16, FLOAT32, ModelSize, logits_bytes, size_of, trained_weights
from .parallel import FSDP2Strategy
from .types import ConfigError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from .data.task_datamodule import TaskDataModule
    from .modules.base import RoundModule

MOMENTS = 2 * FLOAT32
STEP = 256
"""Advice on tokens is a multiple of this."""


@dataclass(frozen=True)
class Setup:
    """What the trainer has.

    Args:
        ranks: processes in all.
        mixed: bf16-mixed.
        strategy: the FSDP2 strategy over whose processes weights are sharded, or None.
        on_gpu: else on a CPU.
        device_bytes: memory of a process: of its GPU, or its share of the host's.
    """

    ranks: int
    mixed: bool
    strategy: FSDP2Strategy | None
    on_gpu: bool
    device_bytes: float

    @classmethod
    def of(cls, trainer: Namespace, device_bytes: float | None = None) -> Setup:
        """What the trainer of a config has; the bytes of a device are by default this machine's, shared by its processes."""
        on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())
        devices = trainer.devices
        if devices in ("auto", -1, "-1"):
            devices = max(1, torch.cuda.device_count()) if on_gpu else 1
        if isinstance(devices, str) and "," in devices:
            devices = devices.strip(",").split(",")
        on_machine = len(devices) if isinstance(devices, list) else int(devices)
        if on_machine < 1:
            raise ConfigError(f"trainer.devices is {trainer.devices}; expected at least 1")
        strategy = trainer.strategy
        if isinstance(strategy, str):
            strategy = FSDP2Strategy() if strategy.startswith("fsdp2") else None
        elif not isinstance(strategy, FSDP2Strategy):
            strategy = None
        if device_bytes is None and on_gpu and torch.cuda.is_available():
            device_bytes = torch.cuda.get_device_properties(0).total_memory
        if device_bytes is None and on_gpu:
            raise ConfigError("this machine has no GPU to ask for its memory; give --device_gb, for example 80")
        if device_bytes is None:
            device_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / on_machine
        precision = trainer.precision or ("bf16-mixed" if on_gpu else "32-true")
        mixed = precision in ("bf16-mixed", "bf16")
        return cls(trainer.num_nodes * on_machine, mixed, strategy, on_gpu, float(device_bytes))


@dataclass(frozen=True)
class Budget:
    """Bytes of a process on its device.

    Attributes:
        update: {part: bytes} while an update is taken; `activations` are those of one micro-batch.
        sampling: the same while completions are sampled.
        per_token: bytes of `activations` for each token of a micro-batch.
    """

    update: Mapping[str, float]
    sampling: Mapping[str, float]
    per_token: float

    @property
    def needed(self) -> float:
        return max(sum(self.update.values()), sum(self.sampling.values()))

    def tokens_that_fit(self, device_bytes: float) -> int:
        """The largest tokens_per_microbatch that leaves an update within the device, 0 where none does."""
        rest = sum(self.update.values()) - self.update["activations"]
        return max(0, int((device_bytes - rest) / self.per_token) // STEP * STEP)


def budget_of(module: RoundModule, data: TaskDataModule, setup: Setup, checkpointing: bool | None = None) -> Budget:
    """`checkpointing` in the place of the module's own setting.

    Raises:
        ConfigError: the config of a model cannot be loaded.
    """
    sizes = {name: size_of(source) for name, source in module.sources.items()}
    trained = [trained_weights(module.sources[name], module.adapters.get(name)) for name in module.trained_names]
    widths = {name: BFLOAT16 if name in module.adapters and setup.mixed and not setup.strategy else FLOAT32 for name in sizes}
    shards = setup.ranks if setup.strategy else 1
    kept = 0 if setup.strategy and setup.strategy.cpu_offload else 1
    beside = FLOAT32 * sum(trained_weights(module.sources[name], lora) for name, lora in module.adapters.items())
    weights = kept * (sum(widths[name] * size.weights for name, size in sizes.items()) + beside) / shards
    gradients = kept * FLOAT32 * sum(trained) / shards
    stepped = max if module.offload_optimizer else sum
    moments = kept * MOMENTS * stepped(trained) / shards
    largest = max(sizes.values(), key=lambda size: size.weights)
    lowered = setup.strategy is not None and setup.strategy.gather_dtype == "bfloat16"
    copied = [size.weights for name, size in sizes.items() if widths[name] == FLOAT32]
    copies = float(BFLOAT16 * max(copied, default=0)) if setup.mixed and not lowered else 0.0
    gathered = _gathered(largest, setup)
    checkpointing = module.activation_checkpointing if checkpointing is None else checkpointing
    per_token = max(sizes[name].activations_per_token(setup.mixed, checkpointing) for name in module.trained_names)
    update = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": moments,
        "bfloat16 copies": copies,
        "gathered layers": gathered,
        "activations": float(per_token * module.tokens_per_microbatch),
        "logits": float(logits_bytes(setup.on_gpu)),
    }
    sampled = sizes[module.trained_names[0]]
    if isinstance(data.engine, VLLMEngine) and not (data.engine.sleeps and setup.on_gpu):
        update["engine"] = _vllm(data.engine, sampled, setup)
    waiting = 0.0 if module.offload_optimizer else moments
    sampling = {"weights": weights, "optimizer": waiting, **_engine(data, sampled, setup)}
    if widths[module.trained_names[0]] == BFLOAT16 and "bfloat16 copies" in sampling:
        sampling["bfloat16 copies"] = 0.0
    return Budget(update, sampling, float(per_token))


def what_would_fit(module: RoundModule, data: TaskDataModule, setup: Setup) -> list[str]:
    """Settings that, by the estimate, let a config fit that does not, each by itself; the least change first."""
    device, budget = setup.device_bytes, budget_of(module, data, setup)
    found = []
    sampling_fits = sum(budget.sampling.values()) <= device
    if sampling_fits and (tokens := budget.tokens_that_fit(device)):
        found.append(f"model.init_args.tokens_per_microbatch {tokens}")
    if not module.activation_checkpointing and budget_of(module, data, setup, checkpointing=True).needed <= device:
        found.append("model.init_args.activation_checkpointing true")
    if isinstance(data.engine, VLLMEngine) and not sampling_fits and sum(budget.update.values()) <= device:
        rest = sum(held for part, held in budget.sampling.items() if part != "engine")
        size = size_of(module.sources[module.trained_names[0]])
        share = math.floor(100 * (1 - rest / device)) / 100
        if setup.on_gpu and share * device > BFLOAT16 * size.weights:
            found.append(f"data.init_args.engine.init_args.memory_share {share:.2f}")
    strategies = {
        "fsdp2": FSDP2Strategy(),
        "fsdp2 with gather_dtype bfloat16": FSDP2Strategy(gather_dtype="bfloat16"),
        "fsdp2 with gather_dtype bfloat16 and cpu_offload true": FSDP2Strategy(gather_dtype="bfloat16", cpu_offload=True),
    }
    for name, strategy in strategies.items():
        if budget_of(module, data, replace(setup, strategy=strategy)).needed <= device:
            return [*found, f"trainer.strategy {name}"]
    return found


def after_out_of_memory(module: RoundModule, data: TaskDataModule, setup: Setup) -> str:
    """What to change after a device ran out of memory: what the estimate has room for, and in any case less than before."""
    budget, now = budget_of(module, data, setup), module.tokens_per_microbatch
    fitting = budget.tokens_that_fit(0.9 * setup.device_bytes)
    words = f"tokens_per_microbatch is {now}, try {max(1, min(fitting or now, now // 2))}"
    if isinstance(data.engine, VLLMEngine) and data.engine.kv_cache_gib is None:
        words += f"; the engine's memory_share is {data.engine.memory_share}, try {0.75 * data.engine.memory_share:.2f}"
    if isinstance(data.engine, TransformersEngine):
        words += f"; the engine's max_rows is {data.engine.max_rows}, try {max(1, data.engine.max_rows // 2)}"
    if not module.activation_checkpointing:
        words += "; or activation_checkpointing: true"
    return f"{words}. `fulgurite explain` estimates what a config needs: here {budget.needed / 1e9:.1f} GB"


def _gathered(size: ModelSize, setup: Setup) -> float:
    """Under FSDP2: the layer at hand and the next one, the gradients of one, and what is outside the layers."""
    if not setup.strategy:
        return 0.0
    width = BFLOAT16 if setup.strategy.gather_dtype == "bfloat16" else FLOAT32
    return float(width * (2 * size.layer + size.outside) + FLOAT32 * (size.layer + size.outside))


def _engine(data: TaskDataModule, size: ModelSize, setup: Setup) -> dict[str, float]:
    if isinstance(data.engine, VLLMEngine):
        return {"engine": _vllm(data.engine, size, setup)}
    if not isinstance(data.engine, TransformersEngine):
        return {}
    width = BFLOAT16 if setup.mixed else FLOAT32
    rows = min(data.engine.max_rows, -(-data.prompts_per_step // setup.ranks) * getattr(data, "completions_per_prompt", 1))
    new = data.sampling.max_new_tokens if hasattr(data, "sampling") else 0
    parts = {
        "whole copy": FLOAT32 * size.weights if setup.strategy else 0,
        "bfloat16 copies": BFLOAT16 * size.weights if setup.mixed else 0,
        "key-value cache": rows * ((data.max_prompt_tokens or 0) + new) * size.kv_cache_per_token(width),
    }
    return {name: float(value) for name, value in parts.items()}


def _vllm(engine: VLLMEngine, size: ModelSize, setup: Setup) -> float:
    if engine.kv_cache_gib is None and setup.on_gpu:
        return engine.memory_share * setup.device_bytes
    width = {"bfloat16": BFLOAT16, "float32": FLOAT32, None: BFLOAT16 if setup.on_gpu else FLOAT32}[engine.wanted_dtype]
    return 2**30 * (engine.kv_cache_gib or CPU_KV_CACHE_GIB) + width * size.weights
