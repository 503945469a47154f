"""One optimizer with a named parameter group per trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..schedules import Schedule, rate_factor
from ..types import ConfigError


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW for one model.

    Args:
        learning_rate: peak rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled weight decay per unit of learning rate.
        schedule: what follows the warm-up: `constant`, or a fall to 0 at the last update, `linear` or `cosine`.
        warmup_updates: updates over which the rate rises linearly.
        max_grad_norm: the model's gradient is scaled down to this 2-norm; 0 switches it off.
        for_prompts_per_step: the `prompts_per_step` that the rate is for; with more or fewer prompts it grows or falls in
            proportion (2-GRPO, arXiv 2510.00977, appendix C.1). None takes the rate as it is.
    """

    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_updates: int = 0
    max_grad_norm: float = 1.0
    for_prompts_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"optimizer has betas {list(self.betas)} and weight_decay {self.weight_decay}; "
                "expected betas from 0 to below 1 and a weight_decay of 0 or more"
            )
        if self.for_prompts_per_step is not None and self.for_prompts_per_step < 1:
            raise ConfigError(f"optimizer.for_prompts_per_step is {self.for_prompts_per_step}; expected at least 1, or null")
        if self.learning_rate < 0 or self.max_grad_norm < 0 or self.warmup_updates < 0:
            raise ConfigError(
                f"optimizer has learning_rate {self.learning_rate}, max_grad_norm {self.max_grad_norm}, "
                f"warmup_updates {self.warmup_updates}; expected none below 0"
            )

    def peak_rate(self, prompts_per_step: int) -> float:
        """The peak rate of a run with this many prompts per step."""
        if self.for_prompts_per_step is None:
            return self.learning_rate
        return self.learning_rate * prompts_per_step / self.for_prompts_per_step


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose state waits on the CPU; that of a group is on the device of its weights only while the group steps."""

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            for group in groups:
                self.param_groups = [group]
                self._move_state(group, offload=False)
                super().step()
                self._move_state(group, offload=True)
        finally:
            self.param_groups = groups
        return loss

    def _move_state(self, group: dict, offload: bool) -> None:
        for parameter in group["params"]:
            state = self.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name].to("cpu" if offload else parameter.device)


def build_optimizer(
    models: Mapping[str, nn.Module],
    specs: Mapping[str, OptimizerSpec],
    total_updates: float,
    prompts_per_step: int,
    offload: bool = False,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over all models and its schedule; the state is ready for every parameter, for FSDP2 cannot resume half of one."""
    groups = [
        {
            "name": name,
            "params": [p for p in model.parameters() if p.requires_grad],
            "lr": specs[name].peak_rate(prompts_per_step),
            "betas": specs[name].betas,
            "weight_decay": specs[name].weight_decay,
        }
        for name, model in models.items()
    ]
    optimizer = (OffloadedAdamW if offload else torch.optim.AdamW)(groups, fused=True)
    ready_state(optimizer)

    def factor(spec: OptimizerSpec):
        return lambda update: rate_factor(update, spec.schedule, spec.warmup_updates, total_updates)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(specs[name]) for name in models])


def ready_state(optimizer: torch.optim.Optimizer) -> None:
    """Creates the state of every parameter with one step at rate 0 and gradient 0; no weight changes."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        state["step"].zero_()
