"""Guard: a run is resumed with another model, other data, or another method than it began with."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import ConfigError

METHOD = ("model", "data", "trainer.callbacks", "trainer.precision", "tiny")
FREE = (
    "model.init_args.tokens_per_microbatch",
    "model.init_args.activation_checkpointing",
    "model.init_args.offload_optimizer",
    "data.init_args.engine",
    "data.init_args.further_engines",
    "data.init_args.benchmarks",
    "data.init_args.grader",
    "data.init_args.task.init_args.grader",
)
"""They change where, how fast or on what a run is measured, not what is learned."""


def changed_settings(before: Mapping, now: Mapping) -> list[str]:
    """A line for each setting of the method that differs; one that the earlier config does not know is left out."""
    old, new = flat_settings(before), flat_settings(now)
    names = [name for name in sorted({*old, *new}) if _within(name, METHOD) and not _within(name, FREE)]
    known = [name for name in names if name in old or _other_part(name, old)]
    return [f"{name} was {old.get(name)} and is now {new.get(name)}" for name in known if old.get(name) != new.get(name)]


def check_settings(before: Mapping, now: Mapping) -> None:
    """
    Raises:
        ConfigError: the settings of the method differ.
    """
    if changes := changed_settings(before, now):
        raise ConfigError(
            f"the run had other settings: {'; '.join(changes)}. Expected the same: resume with the old ones, start a "
            "new run in another --run_dir, or give --allow_changes true to go on with the new ones; the optimizer's state and "
            "rates come from the checkpoint"
        )


def flat_settings(tree: object, name: str = "") -> dict[str, object]:
    """{dotted name: value} of settings inside settings."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree}
    below = [flat_settings(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items()]
    return {leaf: value for settings in below for leaf, value in settings.items()}


def _within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _other_part(name: str, old: Mapping[str, object]) -> bool:
    """Whether the earlier config has something in the place of a setting: another class, or nothing where now are settings."""
    return any(name.startswith(known + ".") or known.startswith(name + ".") for known in old)
