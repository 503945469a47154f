"""What configs and options describe, made without a run: nothing is trained, and no folder is written."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from .data.task_datamodule import TaskDataModule
from .modules.base import RoundModule
from .trainer_cli import CLI, make


class ConfigOnly(CLI):
    """Makes what the config of a fit describes, and runs nothing."""

    def before_instantiate_classes(self) -> None:
        """Nothing is looked for: neither checkpoints nor models."""

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Explained(ConfigOnly):
    """The same with the models that the run would load."""

    def before_instantiate_classes(self) -> None:
        self._models(self.config[self.subcommand])


def explained(argv: list[str]) -> Namespace:
    """Trainer settings, module and DataModule of the configs and options of a run."""
    return make(Explained, ["fit", *argv]).config_init.fit


def module_of(settings: dict) -> RoundModule:
    """The module of the part `model` of a run's config; its models are not loaded."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RoundModule, "model")
    return parser.instantiate_classes(parser.parse_object({"model": settings})).model


def data_of(argv: list[str]) -> TaskDataModule:
    """The DataModule of the configs and options of a run."""
    return make(ConfigOnly, ["fit", *argv]).config_init.fit.data
