"""Guard: a run is resumed beside another frozen model (a reference, a teacher) than the one it began with."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import ConfigError


def check_frozen(before: Mapping[str, int], now: Mapping[str, int], sources: Mapping[str, object]) -> None:
    """
    Args:
        before, now: {name: fingerprint of its weights}; a model that only one of them has is not compared.
        sources: {name: where it is loaded from}.

    Raises:
        ConfigError: the weights of a model differ.
    """
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            raise ConfigError(
                f"the weights of the frozen model {name!r}, from {sources[name]}, are not those that the run began with "
                f"(fingerprint {before[name]}, now {now[name]}); expected the same: put the old model back, or start a new run"
            )
