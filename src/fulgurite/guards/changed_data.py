"""Guard: a run is resumed on other prompts than those it began with."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import ConfigError


def check_data(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> None:
    """Compares identities under the same names: {`training split` or `benchmark <name>`: split, prompts, sha256}.

    Raises:
        ConfigError: two differ.
    """
    for of in sorted(before.keys() & now.keys(), reverse=True):
        if before[of]["sha256"] != now[of]["sha256"]:
            was, become = (f"{i['prompts']} of split {i['split']!r}, sha256 {i['sha256']}" for i in (before[of], now[of]))
            raise ConfigError(
                f"the prompts of the {of} are not those of the checkpoint: they were {was}, and are {become}; "
                "expected the same prompts in the same order: resume on the old data, or start a new run"
            )
