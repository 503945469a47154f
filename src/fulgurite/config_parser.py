"""How configs and options are read: classes by short names, files that add to those before, guesses at misspelt names."""

from __future__ import annotations

import difflib
import re
from inspect import signature
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from .callbacks.codistillation import CoDistillation
from .callbacks.defaults import TUNABLE
from .callbacks.downsampling import DownSampling
from .callbacks.pruning import CompletionPruning
from .callbacks.tsallis import TsallisReweighting
from .command_errors import cause_of, fail, sentence_in
from .data.rollout_datamodule import RolloutDataModule
from .data.supervised_datamodule import SupervisedDataModule
from .data.task_datamodule import Benchmark
from .engines.transformers_engine import TransformersEngine
from .engines.vllm_engine import VLLMEngine
from .engines.vllm_server import VLLMServerEngine
from .modules.codistill import CoDistillGRPO
from .modules.grpo import GRPO
from .modules.latent_reasoning import LatentReasoning
from .modules.optimizer import OptimizerSpec
from .modules.supervised import SupervisedFineTuning
from .tasks.addition import Addition
from .tasks.gsm8k import GSM8K
from .tasks.knights_knaves import KnightsKnaves
from .tasks.knights_letters import KnightsKnavesLetters
from .tasks.math import Math
from .tasks.qa import QA
from .types import ConfigError, SamplingSpec

# Classes that a config may name without their module; importing them here is what makes that work.
SHORT_NAMES = (
    GRPO,
    CoDistillGRPO,
    LatentReasoning,
    SupervisedFineTuning,
    CompletionPruning,
    CoDistillation,
    DownSampling,
    TsallisReweighting,
    RolloutDataModule,
    SupervisedDataModule,
    TransformersEngine,
    VLLMEngine,
    VLLMServerEngine,
    Addition,
    KnightsKnaves,
    KnightsKnavesLetters,
    GSM8K,
    Math,
    QA,
)
OPTIONS = (
    "config",
    "run_dir",
    "tiny",
    "allow_changes",
    "seed_everything",
    "ckpt_path",
    "trainer",
    "model",
    "data",
    "init_args",
)


class Parser(LightningArgumentParser):
    """Prints the error alone, without forty lines of usage, and a likely name for a misspelt class or option; takes no prefix
    of an option for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        text = cause_of(ex, ConfigError) or sentence_in(str(message))
        if "required: fit.data" in text or "are required: data" in text:
            text = "no model and no data are given; expected a config: --config FILE, for example configs/quickstart/grpo.yaml"
        misspelt = re.search(r"import path string: (\w+)", text)
        if misspelt:
            ours = [c.__name__ for c in SHORT_NAMES]
            known = ours + [c.__name__ for c in L.pytorch.callbacks.Callback.__subclasses__()]
            near = difflib.get_close_matches(misspelt[1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected an import path, or one of {', '.join(ours)}"
            text = f"no class {misspelt[1]!r}; {hint}"
        if option := re.search(r"(?:ption '|arguments: --)([\w.]+)", text):
            kinds = (*SHORT_NAMES, *TUNABLE.values(), L.Trainer, OptimizerSpec, SamplingSpec, Benchmark)
            known = {*OPTIONS, "init_args", *TUNABLE, *(name for kind in kinds for name in signature(kind).parameters)}
            strange = next((part for part in option[1].split(".") if part not in known), "")
            if near := difflib.get_close_matches(strange, sorted(known), n=1):
                text += f"; did you mean {near[0]}?"
        fail(text, code=2)


class ConfigFile(ActionConfigFile):
    """A later file adds its named benchmarks and rewards to those of an earlier one; it replaces one of the same name."""

    @staticmethod
    def apply_config(parser: LightningArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        before = {key: cfg.get(f"data.init_args.{key}") for key in ("benchmarks", "rewards")}
        ActionConfigFile.apply_config(parser, cfg, dest, value)
        for key, named in before.items():
            if named and (now := cfg.get(f"data.init_args.{key}")):
                cfg[f"data.init_args.{key}"] = {**named, **now}
