"""fulgurite export: a Hugging Face folder from any checkpoint of a run, with a model card and the run's config."""

from __future__ import annotations

import argparse
import shutil
import warnings
from pathlib import Path

import torch
import yaml
from torch import Tensor

from ..callbacks.checkpoint_files import checkpoint_at
from ..callbacks.evaluation import read_rows
from ..command_errors import short_errors
from ..config_only import module_of
from ..models.adapters import save_adapters
from ..models.causal_lm import CausalLM
from ..models.sources import load_tokenizer
from ..modules.base import COUNTERS
from ..types import ConfigError
from .model_card import model_card


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="fulgurite export", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("out", type=Path, help="the folder to make; of several trained models each has a folder in it")
    parser.add_argument("--ckpt_path", default="last", help="`last` (the default), `best`, or a path")
    parser.add_argument("--adapters_only", action="store_true", help="LoRA adapters alone, as peft reads them")
    options = parser.parse_args(argv[1:])
    with short_errors():
        for folder in export(options.run, options.out, options.ckpt_path, options.adapters_only):
            print(folder)


def export(run_dir: Path, out: Path, ckpt_path: str = "last", adapters_only: bool = False) -> list[Path]:
    """Writes the trained models of a checkpoint, whole or in shards; returns their folders.

    The architecture and the tokenizer are those of the model that the run began with; adapters are merged into the weights.

    Raises:
        ConfigError: no such run or checkpoint, `out` exists, or a model without adapters is asked for its adapters.
    """
    written = run_dir / "config.yaml"
    if not written.is_file():
        raise ConfigError(f"{run_dir} has no config.yaml; expected the folder of a run")
    if out.exists():
        raise ConfigError(f"{out} exists; expected a folder to make: choose another name, or remove it")
    checkpoint = checkpoint_at(run_dir, ckpt_path)
    config = yaml.safe_load(written.read_text())
    module, weights = module_of(config["model"]), saved_weights(checkpoint)
    tokenizer = load_tokenizer(module.sources[module.trained_names[0]])
    counters = {name: int(weights[name]) for name in COUNTERS}
    rows = read_rows(run_dir / "evaluation.jsonl")
    measured = next((row["benchmarks"] for row in rows if row["rounds"] == counters["rounds"]), {})
    several = len(module.trained_names) > 1
    folders = [out / name if several else out for name in module.trained_names]
    for name, folder in zip(module.trained_names, folders, strict=True):
        prefix = f"trained.{name}."
        of_model = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
        lora, base = module.adapters.get(name), next(iter(of_model.values()))
        if adapters_only and not lora:
            raise ConfigError(f"the model {name!r} was trained as a whole and has no adapters; leave --adapters_only out")
        model = CausalLM.outline(module.sources[name], base.dtype)
        if lora:
            model.add_adapters(lora)
        model.load_state_dict(of_model)
        if adapters_only:
            save_adapters(model.hf, lora, str(module.sources[name]), folder)
        else:
            model.save(folder, tokenizer)
        shutil.copy(written, folder / "fulgurite.yaml")
        source, method = str(module.sources[name]), type(module).__name__
        (folder / "README.md").write_text(model_card(folder.name, source, method, counters, measured))
    return folders


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """{name: tensor} of the module in a checkpoint, a file or a folder of shards; nothing in it may run."""
    if checkpoint.is_file():
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    from torch.distributed.checkpoint import FileSystemReader, load

    reader, prefix = FileSystemReader(checkpoint), "state_dict."
    found = {name: entry for name, entry in reader.read_metadata().state_dict_metadata.items() if name.startswith(prefix)}
    weights = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in found.items()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there is one process is meant
        load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}
