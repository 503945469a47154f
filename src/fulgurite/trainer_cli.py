"""fit, validate, test and predict through LightningCLI, with the run's folder, tiny models and short errors."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from .budget import Setup, after_out_of_memory
from .callbacks.checkpoint_files import checkpoint_at, checkpoints_in
from .callbacks.dashboard import write_settings
from .callbacks.defaults import TUNABLE, fixed_callbacks
from .command_errors import ResourceError, short_errors
from .config_parser import ConfigFile, Parser
from .data.task_datamodule import TaskDataModule
from .guards.changed_settings import changed_settings, check_settings, flat_settings
from .models.tiny import TinyModel
from .modules.base import RoundModule
from .parallel import agree, end_with_rank_0, ended_ranks
from .run_record import latest, unused, write_environment
from .types import ConfigError

TRAINER_DEFAULTS = {
    "reload_dataloaders_every_n_epochs": 0,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "inference_mode": False,
    "log_every_n_steps": 1,
    "max_epochs": 1,
}
ELSEWHERE = {
    "gradient_clip_val": (None, "model.init_args.optimizer.max_grad_norm"),
    "accumulate_grad_batches": (1, "model.init_args.tokens_per_microbatch"),
}
"""{option of Lightning's Trainer: (its default, what stands here in its place)}"""
HELP_OF_N = (
    "Completions of each prompt of every benchmark; of several, those of a greedy benchmark are sampled at temperature 1."
)


class SaveRun(SaveConfigCallback):
    """Writes the resolved config and the environment beside the run; a resumed run adds files and replaces none."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            agree(trainer, "comparing the settings", self._compare, trainer)
        if stage == "fit" and trainer.is_global_zero:
            path = unused(Path(trainer.default_root_dir), "config", "yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_none=False, multifile=False)
            write_environment(trainer.default_root_dir, trainer.datamodule.identities)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        shown = {part: config[part] for part in ("seed_everything", "model", "data", "tiny")}
        shown["trainer"] = {key: config["trainer"][key] for key in ("max_epochs", "precision", "strategy", "devices")}
        models = ["", *(f"_{name}" for name in pl_module.trained_names[1:])]
        benchmarks = trainer.datamodule.benchmarks
        write_settings(
            trainer, flat_settings(shown), [f"eval/{name}{model}/accuracy" for name in benchmarks for model in models]
        )

    def _compare(self, trainer: L.Trainer) -> None:
        """With the last config of the run, on the first rank alone, which writes the next."""
        last = latest(Path(trainer.default_root_dir), "config", "yaml") if trainer.is_global_zero else None
        if last is None:
            return
        before, now = yaml.safe_load(last.read_text()), yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        if not self.config.allow_changes:
            check_settings(before, now)
        for change in changed_settings(before, now):
            rank_zero_warn(
                f"{change}; the run goes on with the new setting, except that the optimizer's state and rates come from the "
                "checkpoint"
            )


class CLI(LightningCLI):
    def init_parser(self, **kwargs: Any) -> Parser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="A config file; of several a later one wins.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str,
            default="runs/default",
            help="Folder of this run: config, checkpoints, logs, results.",
        )
        parser.add_argument(
            "--tiny", type=bool, default=False, help="Swap every model for a tiny random one; no weights are downloaded."
        )
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="Resume with other settings of model, data or callbacks than the run began with.",
        )
        for key, kind in TUNABLE.items():
            parser.add_lightning_class_args(kind, key)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--n", type=int | None, default=None, help=HELP_OF_N)
            parser.add_argument("--prompts", type=int | None, default=None, help="Prompts of every benchmark; default all.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """The checkpoint says nothing about the config, so there is no need to read it here."""

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        run = Path(settings.run_dir)
        strategy = settings.trainer.strategy
        if isinstance(strategy, str):
            if strategy.startswith("fsdp") and not strategy.startswith("fsdp2"):
                raise ConfigError(f"trainer.strategy is {strategy}, which breaks with manual optimisation; use fsdp2")
            known = ["auto", *StrategyRegistry.available_strategies()]
            if strategy not in known:
                near = difflib.get_close_matches(strategy, known, n=1) or ["auto, ddp or fsdp2"]
                raise ConfigError(f"trainer.strategy is {strategy}, which is unknown; did you mean {near[0]}?")
        for key, (default, ours) in ELSEWHERE.items():
            if settings.trainer.get(key) != default:
                raise ConfigError(f"trainer.{key} is {settings.trainer[key]}; leave it out and set {ours}")
        if self.subcommand in ("validate", "test"):
            settings.verbose = False  # the evaluation prints a line per benchmark
        checkpoint = settings.get("ckpt_path")
        if checkpoint:
            settings.ckpt_path = str(checkpoint_at(run, checkpoint))
        resumes = bool(checkpoint) and Path(settings.ckpt_path).resolve().parent.parent == run.resolve()
        if self.subcommand == "fit" and not resumes and (run / "config.yaml").exists() and not rank_zero_only.rank:
            way = "resume it with --ckpt_path last" if checkpoints_in(run) else "it has no checkpoint, so remove the folder"
            raise ConfigError(f"{run} already holds a run; {way}, or choose another --run_dir")
        if settings.weights_only is None:
            settings.weights_only = True  # a checkpoint is data: nothing in it may run
        self._models(settings)
        if self.subcommand == "predict":
            for benchmark in (settings.data.init_args.get("benchmarks") or {}).values():
                benchmark.limit = settings.prompts or benchmark.limit
                if settings.n:
                    benchmark.sampling.n, benchmark.k = settings.n, []  # prediction measures nothing at k
                    if settings.n > 1:
                        benchmark.sampling.temperature = benchmark.sampling.temperature or 1.0

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
            if subcommand == "fit" and self.trainer.is_global_zero:
                run = self.trainer.default_root_dir
                print(f"\nrun folder:  {run}\nlook at it:  tensorboard --logdir {run}")
        except RuntimeError as error:
            if "onnection" in str(error) and (gone := ended_ranks(self.trainer)):
                raise ResourceError(f"{gone} ended, and the others cannot go on without; --ckpt_path last resumes") from error
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            advice = after_out_of_memory(self.model, self.datamodule, Setup.of(self.config_init[subcommand].trainer))
            raise ResourceError(f"out of memory: {str(error).splitlines()[0]} {advice}") from error

    def _models(self, settings: Namespace) -> None:
        """Makes models tiny where asked, and refuses a missing folder with the command that makes it."""
        models = settings.model.init_args
        named = {name: models.get(name) for name in resolve_name(settings.model.class_path).model_arguments}
        sources = [*dict.fromkeys(map(str, named.values()))]
        for name, source in named.items():
            if not isinstance(source, str):
                continue
            if settings.tiny:  # different models stay different
                models[name] = Namespace(vars(TinyModel(seed=sources.index(source))))
            elif source.startswith(("runs/", "./", "/", "../")) and not Path(source).is_dir():
                raise ConfigError(f"no model at {source}; {how_to_make(source, settings.get('config') or [])}")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        settings = self.config_init[self.subcommand]
        logger = settings.trainer.logger
        if logger in (None, True):
            logger = False  # outside fit the step is 0: a point there would hide the curve; evaluation.jsonl has the numbers
            if self.subcommand == "fit":
                logger = TensorBoardLogger(settings.run_dir, name="", version="", default_hp_metric=False)
        self.trainer_defaults["callbacks"] = fixed_callbacks(progress_bar=settings.trainer.enable_progress_bar is not False)
        accelerator = settings.trainer.accelerator
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        precision = settings.trainer.precision or ("bf16-mixed" if accelerator in ("gpu", "cuda") else "32-true")
        return super().instantiate_trainer(
            accelerator=accelerator, precision=precision, logger=logger, default_root_dir=settings.run_dir, **kwargs
        )


def how_to_make(source: str, configs: list) -> str:
    """The command that trains the missing model, if a config beside those given has it as its run."""
    for folder in {Path(str(c)).parent for c in configs}:
        for config in sorted(folder.glob("*.yaml")):
            made = re.search(r"^run_dir: *(\S+)", config.read_text(), re.MULTILINE)
            if made and source.startswith(made[1] + "/"):
                return f"make it with: fulgurite fit --config {config}"
    return "expected a model folder or a hub name"


def make(cli: type[CLI], argv: list[str]) -> CLI:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's use of torch
    return cli(
        RoundModule,
        TaskDataModule,
        save_config_callback=SaveRun,
        seed_everything_default=0,
        trainer_defaults=dict(TRAINER_DEFAULTS),
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={"description": "Reinforcement learning with verifiable rewards."},
        args=argv,
    )


def run(argv: list[str]) -> None:
    """Parses and runs one verb."""
    end_with_rank_0()
    with short_errors():
        make(CLI, argv)
