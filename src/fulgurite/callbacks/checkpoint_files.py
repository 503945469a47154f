"""The checkpoints in a run's folder: which there are, which are whole, and which one a name stands for."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ..types import ConfigError

SHARDS, REST = ".metadata", "meta.pt"
"""Files in a folder of shards: where each part of a tensor is, and what is no tensor."""
DESCRIBING = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "WindowsPath"},
}  # fmt: skip
"""{module: names} that may stand in the description of shards, which is a pickle."""


def checkpoints_in(run_dir: str | Path, best: bool = False) -> list[Path]:
    """The checkpoints of a run in the order in which they were written: after going back to an older one, what the run then
    writes is newer than the rounds that it left. With `best` those that were the best: one, or the last of two after a kill."""
    found = (Path(run_dir) / "checkpoints").glob(f"{'best-' if best else ''}round-*-update-*.ckpt")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def checkpoint_at(run_dir: str | Path, name: str) -> Path:
    """The newest checkpoint of a run for `last`, its best for `best`, else the path itself.

    Raises:
        ConfigError: there is none.
    """
    if name in ("last", "best"):
        found = checkpoints_in(run_dir, best=name == "best")
        while found and (fault := fault_of(found[-1])):
            rank_zero_warn(f"{found.pop()} {fault}; the checkpoint before it is taken")
        if not found:
            hint = "was checkpoint.best set, and " if name == "best" else ""
            raise ConfigError(
                f"--ckpt_path {name} finds no checkpoint in {Path(run_dir) / 'checkpoints'}; {hint}is that the run's folder? "
                "A run that ended before its first checkpoint begins anew: remove its folder"
            )
        return found[-1]
    if not Path(name).exists():
        raise ConfigError(f"--ckpt_path {name} does not exist; `last` stands for the newest of the run, `best` for its best")
    if fault := fault_of(Path(name)):
        raise ConfigError(f"--ckpt_path {name} {fault}; expected a whole checkpoint: `last` takes the newest that is")
    return Path(name)


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a file or folder that should be a whole checkpoint. Reads all of a file; of shards their sizes."""
    if checkpoint.is_dir():
        return _fault_of_shards(checkpoint)
    if not zipfile.is_zipfile(checkpoint):
        return "is cut short, or no checkpoint"
    with zipfile.ZipFile(checkpoint) as archive:
        damaged = archive.testzip()
    return damaged and f"is damaged in {damaged}"


def _fault_of_shards(folder: Path) -> str | None:
    if missing := [name for name in (SHARDS, REST) if not (folder / name).is_file()]:
        return f"has no {missing[0]}, so it is not whole"
    with (folder / SHARDS).open("rb") as file:
        try:
            metadata = _Description(file).load()
        except (pickle.UnpicklingError, EOFError) as error:
            return f"has a {SHARDS} that cannot be read ({error})"
    for part in metadata.storage_data.values():
        shard = folder / part.relative_path
        if not shard.is_file() or shard.stat().st_size < part.offset + part.length:
            return f"lacks a part of {shard.name}"
    return fault_of(folder / REST)


class _Description(pickle.Unpickler):
    """Refuses every name that would not describe shards: it could run anything."""

    def find_class(self, module: str, name: str) -> object:
        if name not in DESCRIBING.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def link(path: str | Path, other: str | Path) -> None:
    """A second name for a file, or for each file of a folder; a copy where the file system has no such names."""
    if os.path.isdir(path):
        shutil.copytree(path, other, copy_function=link)
        return
    try:
        os.link(path, other)
    except OSError:
        shutil.copy2(path, other)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
