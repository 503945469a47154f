"""Rows of data sets: files, folders, the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..types import ConfigError

FILES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


@dataclass(frozen=True)
class Source:
    """Rows of a data set, always in the same order.

    Args:
        path: a file (.jsonl, .jsonl.gz, .json with a list of objects, .parquet), a folder of data files that the library
            `datasets` can load, or a name on the hub.
        columns: our name of a column -> the data set's, for example `{question: problem}`; dots lead into objects and lists,
            for example `{question: prompt.0.content, answer: extra_info.answer}`.
        split: of a folder or a data set of the hub.
        name: of the configuration of a data set of the hub, where it has several.
        filter: {column of the data set: values}; only rows with one of these values, for example `{level: [3, 4, 5]}`.
        incomplete: rows in which a column that is read is null or empty: `drop` leaves them out.
        limit: take only this many rows.
    """

    path: str
    columns: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    name: str | None = None
    filter: dict[str, list[str | int | bool]] = field(default_factory=dict)
    incomplete: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit of {self.path} is {self.limit}; expected at least 1, or null for all rows")
        if not self.path.endswith(FILES):
            if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
                raise ConfigError(
                    f"no folder at {self.path} (seen from {Path.cwd()}); set `path` to a folder, a name on the hub, or a file "
                    f"that ends with {', '.join(FILES)}"
                )
            if not self.split:
                raise ConfigError(
                    f"{self.path} is a data set with splits, and none is chosen; set `split`, for example to train"
                )
        elif not Path(self.path).is_file():
            raise ConfigError(f"no file at {self.path} (seen from {Path.cwd()}); set `path` to a file that is there")
        elif self.split or self.name:
            raise ConfigError(
                f"{self.path} is one file, which has no split {self.split!r} and no name {self.name!r}; leave both out"
            )

    def rows(self, wanted: tuple[str, ...]) -> list[dict[str, str]]:
        """Every row with the wanted columns: text as it is, everything else as JSON.

        Raises:
            ConfigError: a row is no object, lacks a column or has nothing in it; the message names the file and the line, or
                the row, counted from 1.
        """
        chosen = (
            {name: self._text(where, row, self.columns.get(name, name)) for name in wanted}
            for where, row in self._records()
            if all(self._text(where, row, column) in map(as_text, values) for column, values in self.filter.items())
            and not (self.incomplete == "drop" and self._lacks(row, wanted))
        )
        try:
            return list(islice(chosen, self.limit))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path} cannot be read: {error}; expected a whole file in UTF-8") from error

    def fingerprint(self, wanted: tuple[str, ...]) -> str:
        """Of the wanted columns of all rows, in their order; equal rows give equal fingerprints, wherever they come from."""
        return fingerprint(self.rows(wanted))

    def _records(self) -> Iterator[tuple[str, Any]]:
        """(where a row stands, the row as it was found)"""
        kind = next((suffix for suffix in FILES if self.path.endswith(suffix)), None)
        read = {".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".json": _json_list, ".parquet": _parquet}
        yield from read[kind](self.path) if kind else _data_set(self.path, self.name, self.split)

    def _lacks(self, row: Any, wanted: tuple[str, ...]) -> bool:
        """Whether one of the wanted columns is there and has nothing in it."""
        try:
            values = [_value(row, self.columns.get(name, name)) for name in wanted]
        except (KeyError, IndexError, TypeError, ValueError):
            return False
        return any(value is None or value != value or value == "" for value in values)

    def _text(self, where: str, row: Any, column: str) -> str:
        """The value of a column of the data set, as text."""
        if not isinstance(row, Mapping):
            raise ConfigError(f"{where}: found {type(row).__name__}; expected a JSON object")
        try:
            value = _value(row, column)
        except (KeyError, IndexError, TypeError, ValueError):
            ours = next((name for name, theirs in self.columns.items() if theirs == column), column)
            raise ConfigError(
                f"{where}: no column {column!r}; it has {', '.join(sorted(row))}. Map it with `columns: {{{ours}: NAME}}`"
            ) from None
        if value is None or value != value:
            raise ConfigError(f"{where}: {column} is null; expected text or a number. Correct the row, or set incomplete: drop")
        try:
            return as_text(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{where}: {column} is {type(value).__name__}; expected text, a number or a list of these"
            ) from None


def as_text(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows in their order, as lines of JSON with sorted keys; the same in every process."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _value(row: Any, column: str) -> Any:
    """The value at a column; a column whose own name has dots is found first."""
    if column in row:
        return row[column]
    for part in column.split("."):
        row = row[int(part)] if isinstance(row, list) else row[part]
    return row


def _json_lines(path: str) -> Iterator[tuple[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError(f"{where}: expected a JSON object ({error})") from None


def _json_list(path: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: expected a list of JSON objects ({error.msg})") from None
    if not isinstance(rows, list):
        raise ConfigError(
            f"{path} holds {type(rows).__name__}; expected a list of JSON objects, or a .jsonl file with one a line"
        )
    yield from _numbered(path, rows)


def _parquet(path: str) -> Iterator[tuple[str, Any]]:
    parquet = _optional("pyarrow.parquet", path)
    try:
        file = parquet.ParquetFile(path)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}; expected a parquet file") from error
    yield from _numbered(path, (row for batch in file.iter_batches() for row in batch.to_pylist()))


def _data_set(path: str, name: str | None, split: str) -> Iterator[tuple[str, Any]]:
    datasets = _optional("datasets", path)
    try:
        rows = datasets.load_dataset(path, name, split=split)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        advice = "expected a folder of parquet, JSON or CSV files, or a name on the hub, with this split and name"
        if isinstance(error, OSError) and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            advice = "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or set `path` to a file"
        raise ConfigError(f"split {split!r} of {path!r} cannot be loaded: {reason}; {advice}") from error
    yield from _numbered(f"{path}, split {split}", rows)


def _numbered(path: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _optional(module: str, path: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the package {module.split('.')[0]}; install it with: pip install 'fulgurite[data]'"
        ) from error
