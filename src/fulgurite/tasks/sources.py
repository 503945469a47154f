"""Rows of files."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

from ..types import ConfigError


@dataclass(frozen=True)
class JsonlSource:
    """A file with one JSON object a line; `.gz` is read compressed.

    Args:
        path: the file.
        columns: our name of a column -> the file's name, for example `{question: problem}`.
        limit: read only this many rows.
    """

    path: str
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise ConfigError(f"no file at {self.path} (seen from {Path.cwd()}); set `path` to a .jsonl or .jsonl.gz file")

    def rows(self, wanted: tuple[str, ...]) -> list[dict[str, str]]:
        """Every row with the wanted columns, as text.

        Raises:
            ConfigError: a line is no JSON object or lacks a column; the message names file and line.
        """
        found = []
        with gzip.open(self.path, "rt") if self.path.endswith(".gz") else open(self.path) as lines:
            for number, line in enumerate(lines, start=1):
                if self.limit is not None and len(found) >= self.limit:
                    break
                if line.strip():
                    found.append(self._row(line, number, wanted))
        return found

    def _row(self, line: str, number: int, wanted: tuple[str, ...]) -> dict[str, str]:
        try:
            row = json.loads(line)
            values = {name: row[self.columns.get(name, name)] for name in wanted}
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"{self.path}, line {number}: expected a JSON object ({error})") from None
        except KeyError as missing:
            raise ConfigError(
                f"{self.path}, line {number}: no column {missing}; it has {', '.join(sorted(row))}. "
                f"Map it with `columns: {{{wanted[0]}: NAME}}`"
            ) from None
        empty = [name for name, value in values.items() if value is None]
        if empty:
            raise ConfigError(
                f"{self.path}, line {number}: {empty[0]} is null; expected text or a number. Correct or drop the line"
            )
        return {name: str(value) for name, value in values.items()}
