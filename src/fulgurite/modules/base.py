"""What every method shares: lazy models, scoring, the micro-batch loop, clipping, schedules and counters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

from ..guards.changed_model import check_frozen
from ..losses.compose import Component, compose, rows_that_matter
from ..metrics.benchmark import BenchmarkMetric
from ..models.adapters import LoRA
from ..models.causal_lm import CausalLM
from ..models.sources import load_tokenizer
from ..models.tiny import TinyModel
from ..parallel import gather_over_ranks, max_over_ranks, sum_over_ranks
from ..seeding import address
from ..timing import PhaseClock
from ..types import ConfigError, EvaluationBatch, Minibatch, Round
from .microbatches import idle_microbatch, split_by_tokens
from .optimizer import OptimizerSpec, build_optimizer

COUNTERS = ("rounds", "prompts", "updates", "sampled_tokens", "trained_tokens", "empty_minibatches", "skipped_updates")


class RoundModule(L.LightningModule, ABC):
    """Trains on rounds. A subclass names its loss components and computes their sums on a micro-batch.

    `global_step` is the number of optimizer steps. The counters `rounds`, `prompts` (drawn from the training split), `updates`,
    `sampled_tokens`, `trained_tokens`, `empty_minibatches` and `skipped_updates` are summed over ranks and saved with the
    weights; a token counts as trained once for each model that it trained.

    Args:
        trained: {name: source} of the models that are trained; a source is a path, a hub name or a `TinyModel`.
        frozen: {name: source} of models that are only read; they are not saved in checkpoints.
        optimizers: {name: OptimizerSpec} of the trained models.
        tokens_per_microbatch: tokens of one forward pass, padding included. Memory only; never changes the result.
        activation_checkpointing: the trained models keep no activations of a layer for the backward pass; memory only.
        offload_optimizer: the optimizer's state of a model is on the device only while that model steps.
        adapters: {name: LoRA} of the trained models of which only adapters are trained.
    """

    advantage_streams: tuple[str, ...] = ()
    model_arguments: tuple[str, ...] = ("policy",)
    hint_writer: str | None = None
    """The model that can begin completions of the sampled one."""

    def __init__(
        self,
        trained: Mapping[str, str | TinyModel],
        frozen: Mapping[str, str | TinyModel],
        optimizers: Mapping[str, OptimizerSpec],
        tokens_per_microbatch: int,
        activation_checkpointing: bool = False,
        offload_optimizer: bool = False,
        adapters: Mapping[str, LoRA | None] | None = None,
    ) -> None:
        super().__init__()
        if tokens_per_microbatch < 1:
            raise ConfigError(f"tokens_per_microbatch is {tokens_per_microbatch}; expected at least 1, for example 16384")
        self.automatic_optimization = False
        self.sources = {**trained, **frozen}
        self.trained_names, self.optimizer_specs = tuple(trained), dict(optimizers)
        self.tokens_per_microbatch, self.offload_optimizer = tokens_per_microbatch, offload_optimizer
        self.activation_checkpointing = activation_checkpointing
        self.adapters = {name: lora for name, lora in (adapters or {}).items() if lora}
        self.trained = torch.nn.ModuleDict()
        self.frozen: dict[str, CausalLM] = {}
        self.frozen_before: dict[str, int] = {}
        self.frozen_fingerprints: dict[str, int] = {}
        self.clock = PhaseClock()
        self.last_update: dict[str, float] = {}
        self.benchmark_metrics: dict[str, BenchmarkMetric] = {}
        for counter in COUNTERS:
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))

    # What a method supplies

    @property
    @abstractmethod
    def components(self) -> dict[str, Component]:
        """The terms of the loss."""

    @abstractmethod
    def losses(self, rows: Minibatch, model: str) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor] | Tensor]]:
        """Of the components of one trained model: {component: sum over the micro-batch, with gradient}; and, without, of the
        micro-batch {metric: (sum, count)} and {name: (n,) values}."""

    def summarise(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of an update that are no means, from the values of `losses`, all micro-batches and ranks in one."""
        return {}

    def loss_columns(self, updates_per_round: int) -> tuple[str, ...]:
        """Columns the losses read. Follows from the settings, never from the data: ranks must agree."""
        return ()

    def column(self, name: str, rows: Minibatch) -> Tensor:
        """(N, L): one column, for the rows of a micro-batch; called without gradient."""
        raise ConfigError(f"{type(self).__name__} cannot compute the column {name!r}")

    @property
    def streams(self) -> dict[str, set[str]]:
        """{trained model: the coefficient streams that its losses read}."""
        read = {name: {c.stream for c in self._components_of(name).values()} for name in self.trained_names}
        return {name: streams - {None} for name, streams in read.items()}

    # Models

    def configure_model(self) -> None:
        if len(self.trained):
            return
        device = self.trainer.strategy.root_device
        lowered = self.trainer.precision == "bf16-mixed"
        for name, source in self.sources.items():
            lora = self.adapters.get(name)
            if isinstance(self.trainer.strategy, ModelParallelStrategy):
                policies = getattr(self.trainer.strategy, "policies", {})
                model = CausalLM.load_sharded(source, self.device_mesh["data_parallel"], lora, **policies)
            else:  # weights that are not trained need no more than they are computed in
                kept = {"dtype": torch.bfloat16} if lora and lowered else {}
                model = CausalLM.load(source, **kept).to(device)
                if lora:
                    model.add_adapters(lora)
            if name in self.trained_names:
                self.trained[name] = model
                if self.activation_checkpointing:
                    model.checkpoint_activations()
            else:
                self.frozen[name] = model.requires_grad_(False).eval()

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.sources[self.trained_names[0]])

    @property
    def sampling_model(self) -> CausalLM:
        """The model that writes completions."""
        return self.model_of(self.trained_names[0])

    def model_of(self, name: str) -> CausalLM:
        return self.trained[name] if name in self.trained_names else self.frozen[name]

    def configure_optimizers(self):
        decaying = any(spec.schedule != "constant" for spec in self.optimizer_specs.values())
        total = self.trainer.estimated_stepping_batches if decaying else 0
        prompts = getattr(self.trainer.datamodule, "prompts_per_step", 1)
        optimizer, schedule = build_optimizer(self.trained, self.optimizer_specs, total, prompts, self.offload_optimizer)
        return [optimizer], [schedule]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["frozen"] = self.frozen_fingerprints

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.frozen_before = checkpoint.get("frozen", {})

    def on_train_start(self) -> None:
        """The rates of the next update from the schedule: a resumed run may have been given more rounds than it had."""
        self.frozen_fingerprints = {name: model.fingerprint() for name, model in self.frozen.items()}
        check_frozen(self.frozen_before, self.frozen_fingerprints, self.sources)
        schedule, groups = self.lr_schedulers(), self.optimizers().param_groups
        for group, peak, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = peak * factor(schedule.last_epoch)

    # Scoring a round

    def add_columns(self, held: Round, names: tuple[str, ...]) -> Round:
        """The round with the named columns, computed in micro-batches without gradient. Every rank must call it."""
        for name in names:
            if name not in held.columns:
                held = held.with_columns(**{name: self._column_of_round(name, held)})
        return held

    def _column_of_round(self, name: str, held: Round) -> Tensor:
        values = torch.zeros(held.tokens.shape)
        read = held.read_rows().nonzero().flatten()
        rows = held.all_rows().take(read)
        modes = {model: model.training for model in self.trained.values()}
        self.trained.eval()
        with self.clock("score"), torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for indices, part in self._microbatches(rows):
                column = self.column(name, part).float().cpu()
                if indices is not None:
                    values[read[indices], : column.shape[1]] = column
        for model in (*self.trained.values(), *self.frozen.values()):
            if model.is_sharded:
                model.reshard()
        for model, training in modes.items():
            model.train(training)
        return values

    def _microbatches(self, rows: Minibatch):
        """(indices, micro-batch on the device), as many on every rank; the indices of an idle one are None."""
        parts = split_by_tokens(rows, self.tokens_per_microbatch, self.sampling_model.packs)
        for i in range(max_over_ranks(self.trainer, len(parts))):
            if i < len(parts):
                yield parts[i], rows.take(parts[i]).to(self.device)
            else:
                yield None, idle_microbatch(rows).to(self.device)

    # One update

    def training_step(self, minibatch: Minibatch, batch_idx: int) -> None:
        seed = address(self._seed, "update", self.current_epoch, batch_idx, self.global_rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":  # torch.manual_seed looks for every kind of device, 0.3 ms where there is only a CPU
            torch.cuda.manual_seed(seed)
        components = self.components
        kept = {name: self._rows_of(name, minibatch) for name in self.trained_names}
        tokens = sum(self._tokens_of(name, rows) for name, rows in kept.items())
        counts = [c.denominator(minibatch) for c in components.values()] + [tokens]
        *counted, tokens = sum_over_ranks(self.trainer, torch.stack([c.double().cpu() for c in counts])).tolist()
        denominators = dict(zip(components, counted, strict=True))
        read = [name for name, rows in kept.items() if max_over_ranks(self.trainer, len(rows))]
        optimizer = self.optimizers()
        if not read:
            self.empty_minibatches += 1
            self.last_update = {"loss": 0.0, "skipped": 0.0, "empty": 1.0}
            self._log_update(self.last_update)
            return
        with self.clock("train"):
            optimizer.zero_grad()
            loss, metrics = torch.zeros((), dtype=torch.float64), {}
            for name in read:
                of_model, measured = self._accumulate(name, replace(kept[name], denominators=denominators))
                loss, metrics = loss + of_model, metrics | measured
            norms = {name: self._clip(name) for name in self.trained}
            finite = bool(torch.isfinite(torch.stack([loss, *norms.values()])).all())
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            if finite:
                optimizer.step()
                self.lr_schedulers().step()
                self.updates += 1
                self.trained_tokens += int(tokens)
            else:
                optimizer.zero_grad()
                self.skipped_updates += 1
        self.last_update = {
            "loss": float(loss),
            **{f"grad_norm/{name}": float(norm) for name, norm in norms.items()},
            **{f"lr/{name}": rate for name, rate in rates.items()},
            **metrics,
            "skipped": float(not finite),
            "empty": 0.0,
        }
        self._log_update(self.last_update)

    def _components_of(self, model: str) -> dict[str, Component]:
        return {name: component for name, component in self.components.items() if component.model == model}

    def _rows_of(self, model: str, minibatch: Minibatch) -> Minibatch:
        return minibatch.take(rows_that_matter(minibatch, self._components_of(model)).nonzero().flatten())

    def _tokens_of(self, model: str, rows: Minibatch) -> Tensor:
        """Scalar: the tokens that the losses of a model read."""
        return torch.stack([component.keep(rows) for component in self._components_of(model).values()]).any(0).sum()

    def _accumulate(self, model: str, rows: Minibatch) -> tuple[Tensor, dict[str, float]]:
        """Backward through every micro-batch of a model; returns its loss and metrics of the whole update, over all ranks."""
        components = self._components_of(model)
        total, sums = torch.zeros((), dtype=torch.float64), defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        values_of = defaultdict(list)
        parts = list(self._microbatches(rows))
        for i, (_, part) in enumerate(parts):
            with self._gradient_sync(last=i == len(parts) - 1):
                values, measured = self.losses(part, model)
                loss = compose(values, components, rows.denominators)
                self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach().double().cpu()
            for name, value in measured.items():
                if isinstance(value, Tensor):
                    values_of[name].append(value.detach().cpu())
                else:
                    sums[name] += torch.stack([x.detach().double().cpu() for x in value])
        names = sorted(sums)
        reduced = sum_over_ranks(self.trainer, torch.stack([total, *(x for n in names for x in sums[n])])).cpu()
        metrics = {name: float(s / c) if c else 0.0 for name, (s, c) in zip(names, reduced[1:].view(-1, 2), strict=True)}
        return reduced[0], {**metrics, **self.summarise(self._gather({n: torch.cat(v) for n, v in values_of.items()}))}

    def _gather(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values (n,) by name, those of all ranks one after the other; n may differ between ranks, the names may not."""
        everyone = gather_over_ranks(self.trainer, values)
        return {name: torch.cat([of_rank[name] for of_rank in everyone]) for name in values}

    def _gradient_sync(self, last: bool):
        ddp = isinstance(self.trainer.strategy, DDPStrategy)
        return self.trainer.model.no_sync() if ddp and not last else nullcontext()

    def _clip(self, name: str) -> Tensor:
        limit = self.optimizer_specs[name].max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.trained[name].parameters(), limit)
        return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).detach().double().cpu()

    def _log_update(self, values: Mapping[str, float]) -> None:
        """As `self.log` would, but all at once: one by one they take longer than a small update."""
        named = {name if "/" in name else f"loss/{name}": value for name, value in values.items()}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        step, every = self.trainer.fit_loop.epoch_loop._batches_that_stepped, self.trainer.log_every_n_steps
        if every and (step + 1) % every == 0:
            for logger in self.trainer.loggers:
                logger.log_metrics({**named, "epoch": self.trainer.current_epoch}, step=step)

    @property
    def _seed(self) -> int:
        return getattr(self.trainer.datamodule, "seed", 0)

    def on_train_epoch_end(self) -> None:
        self.rounds += 1

    # Validation: fresh completions, no update

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch.benchmark not in self.benchmark_metrics:
            self.benchmark_metrics[batch.benchmark] = BenchmarkMetric(batch.correct.shape[1], batch.k).to(self.device)
        self.benchmark_metrics[batch.benchmark].update(batch)

    def test_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def predict_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> EvaluationBatch:
        return batch

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.benchmark_metrics.items():
            self.log_dict({f"eval/{name}/{key}": value for key, value in metric.compute().items()}, sync_dist=True)
        self.benchmark_metrics.clear()
