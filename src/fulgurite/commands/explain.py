"""fulgurite explain: what a config of `fit` asks for, in rows, tokens, updates and bytes, before a model is loaded."""

from __future__ import annotations

import argparse

from ..budget import Budget, Setup, budget_of, what_would_fit
from ..command_errors import short_errors
from ..config_only import explained
from ..models.memory import size_of, trained_weights
from ..types import ConfigError

GB = 1e9


def run(argv: list[str]) -> None:
    """Exit code 2: the config cannot work, or its memory is not there."""
    usage = "fulgurite explain [--device_gb GB] [configs and options of fit]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.split(": ", 1)[1], allow_abbrev=False)
    parser.add_argument("--device_gb", type=float, help="memory of a device in 10^9 bytes; by default this machine's")
    known, options = parser.parse_known_args(argv[1:])
    with short_errors():
        config = explained(options)
        setup = Setup.of(config.trainer, known.device_gb and known.device_gb * GB)
        budget = budget_of(config.model, config.data, setup)
        print("\n".join([*counts(config, setup.ranks), "", *table(budget, setup.device_bytes)]))
        if budget.needed > setup.device_bytes:
            ways = what_would_fit(config.model, config.data, setup)
            advice = f"by the estimate would fit: {'; or '.join(ways)}" if ways else "take more processes, or a smaller model"
            raise ConfigError(
                f"a process needs about {budget.needed / GB:.1f} GB and has {setup.device_bytes / GB:.1f}; {advice}"
            )


def counts(config, ranks: int) -> list[str]:
    """Lines on models, rows, updates and tokens."""
    module, data, rounds = config.model, config.data, config.trainer.max_epochs or 1
    lines = [f"{type(module).__name__}, {type(data).__name__}, {ranks} process{'es' * (ranks > 1)}"]
    for name, source in module.sources.items():
        origin = source if isinstance(source, str) else f"a tiny {source.architecture}"
        kind = "trained" if name in module.trained_names else "frozen"
        if lora := module.adapters.get(name):
            kind = f"adapters of {trained_weights(source, lora) / 1e6:,.2f} million weights trained"
        lines.append(f"model     {name}: {size_of(source).weights / 1e6:,.2f} million weights, {kind}, from {origin}")
    group = getattr(data, "completions_per_prompt", 1)
    rows = data.prompts_per_step * group
    passes = f" x {data.inner_epochs} inner_epochs" if hasattr(data, "inner_epochs") else ""
    steps = getattr(data, "steps_per_round", data.updates_per_round)
    lines += [
        f"rows      {data.prompts_per_step} prompts_per_step x {group} = {rows} an update, {-(-rows // ranks)} on each process",
        f"updates   {steps}{passes} = {data.updates_per_round} a round, {rounds:,} rounds: {rounds * data.updates_per_round:,}",
    ]
    if getattr(data, "fill_to", None):
        lines.append(f"fill_to   {data.fill_to} rows an update, sampled again up to {data.max_fill_rounds} times")
    if hasattr(data, "sampling"):
        most = steps * rows * data.sampling.max_new_tokens
        lines.append(f"tokens    at most {most:,} sampled a round, {rounds * most:,} in all")
    return lines


def table(budget: Budget, device_bytes: float) -> list[str]:
    """Bytes of a process by part, in GB."""
    parts = dict.fromkeys([*budget.update, *budget.sampling])
    lines = [f"{'GB of a process, estimated':<28}{'update':>10}{'sampling':>10}"]
    for part in parts:
        cells = [phase.get(part, 0.0) for phase in (budget.update, budget.sampling)]
        if any(cells):
            lines.append(f"{part:<28}" + "".join(f"{cell / GB:>10.3f}" for cell in cells))
    sums = [sum(phase.values()) for phase in (budget.update, budget.sampling)]
    lines.append(f"{'together':<28}" + "".join(f"{total / GB:>10.3f}" for total in sums))
    lines.append(f"{'of a device':<28}{device_bytes / GB:>10.3f}")
    return lines
