"""What the DataModules share: a task, an engine that holds the current weights, and benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from ..engines.protocol import Engine, EngineError
from ..engines.transformers_engine import TransformersEngine
from ..engines.weights import ChecksummedWeights
from ..guards.changed_data import check_data
from ..guards.contamination import check_contamination, question_of
from ..parallel import agree
from ..seeding import address
from ..tasks.protocol import Task
from ..types import Completion, ConfigError, EvaluationBatch, Minibatch, Prompt, SamplingSpec, Verdict
from .prompts import encode, identity, within_limit
from .rollout_loader import RolloutLoader
from .weight_check import check_load

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Benchmark:
    """Prompts on which a model is evaluated with fresh completions.

    Args:
        split: of the task.
        sampling: how completions are drawn; `n` per prompt, `temperature: 0` is greedy.
        limit: the number of prompts, the same ones every time; by default all.
        prompts_per_batch: prompts sampled at once, over all ranks.
        k: avg@k, pass@k and maj@k are measured for each, from the `sampling.n` completions of each prompt.
        task: whose prompts and judgement; by default the task that is trained on.
    """

    split: str
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    limit: int | None = None
    prompts_per_batch: int = 512
    k: list[int] = field(default_factory=list)
    task: Task | None = None

    def __post_init__(self) -> None:
        if self.sampling.seed:
            raise ConfigError(
                f"a benchmark's sampling.seed is {self.sampling.seed}; leave it out: the run's seed addresses every draw"
            )
        if self.prompts_per_batch < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError(
                f"a benchmark has limit {self.limit} and prompts_per_batch {self.prompts_per_batch}; expected at least 1"
            )
        if not all(1 <= k <= self.sampling.n for k in self.k):
            raise ConfigError(
                f"a benchmark has k {self.k} with sampling.n {self.sampling.n}; expected each k from 1 to n: raise n"
            )
        if self.sampling.n > 1 and not self.sampling.temperature:
            raise ConfigError(
                f"a benchmark has sampling.n {self.sampling.n} at temperature 0, so a prompt's completions are all equal; "
                "expected n 1, or a temperature above 0"
            )


class TaskDataModule(L.LightningDataModule, ABC):
    """Prompts of one task, completions from one engine, and validation on benchmarks.

    Args:
        task: prompts, reference answers and judgement.
        train_split: the split trained on.
        benchmarks: {name: Benchmark}.
        engine: writes the completions; by default the embedded one.
        seed: of every random draw: order of prompts and sampling.
        max_prompt_tokens: of a prompt, in the training split and in the benchmarks; by default only the engine's limit holds.
        long_prompts: `drop` longer ones from the training split, or refuse them; benchmarks keep all their prompts.
        further_engines: {model: Engine} of models of the module other than the sampled one; by default embedded ones.
    """

    updates_per_round: int
    temperature: float = 1.0
    """Of the samples trained on; the engine is checked at it."""

    def __init__(
        self,
        task: Task,
        train_split: str,
        benchmarks: dict[str, Benchmark],
        engine: Engine | None,
        seed: int,
        max_prompt_tokens: int | None = None,
        long_prompts: Literal["error", "drop"] = "error",
        further_engines: dict[str, Engine] | None = None,
    ) -> None:
        super().__init__()
        if max_prompt_tokens is None and long_prompts == "drop":
            raise ConfigError("long_prompts is drop, but no prompt is too long without max_prompt_tokens; set it")
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise ConfigError(f"max_prompt_tokens is {max_prompt_tokens}; expected at least 1, or null for no limit")
        self.task, self.train_split, self.benchmarks, self.seed = task, train_split, benchmarks, seed
        self.max_prompt_tokens, self.long_prompts = max_prompt_tokens, long_prompts
        self.engine, self.further_engines = engine or TransformersEngine(), further_engines or {}
        self.bound, self.start = {}, 0
        self.training_prompts: list[Prompt] = []
        self.identities: dict[str, dict[str, str | int]] = {}
        """{`training split` or `benchmark <name>`: split, number and fingerprint of its prompts}, once they are set up"""
        self.encoded: dict[tuple[int, str], list[Prompt]] = {}

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        if trainer.reload_dataloaders_every_n_epochs:
            raise ConfigError(
                f"trainer.reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}; "
                "expected 0: the loader samples a new round each epoch by itself"
            )
        if trainer.precision not in PRECISIONS:
            raise ConfigError(
                f"trainer.precision is {trainer.precision}; expected one of {', '.join(PRECISIONS)}: "
                "the weights stay float32, so that small updates do not round away"
            )
        if trainer.strategy.root_device.type not in ("cpu", "cuda"):
            raise ConfigError(
                f"trainer.accelerator gives the device {trainer.strategy.root_device}; "
                "expected cpu or cuda: sampling needs float64"
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ConfigError("trainer.strategy is FSDP1, which breaks with manual optimisation; use fsdp2")
        self.bound, self.start, self.encoded = {}, 0, {}
        self.training_prompts, self.identities = [], {}
        self._check_engines()
        pairs = {f"{name}_{model}": name for model in trainer.lightning_module.trained_names[1:] for name in self.benchmarks}
        if taken := sorted(pairs.keys() & self.benchmarks.keys()):
            raise ConfigError(
                f"the benchmark {taken[0]!r} has the name under which {pairs[taken[0]]!r} is shown for another model; rename it"
            )
        tested = {name: self.prompts_of(b.split, b.task) for name, b in self.benchmarks.items()}
        for name, prompts in tested.items():
            within_limit(prompts, self.max_prompt_tokens, f"the benchmark {name!r}", "raise it, a benchmark keeps all prompts")
            self.identities[f"benchmark {name}"] = identity(self.benchmarks[name].split, prompts)
        if stage == "fit":
            self._set_training_prompts()
            self._check_contamination(tested)

    def _check_engines(self) -> None:
        module = self.trainer.lightning_module
        known = {*module.trained_names[1:], module.hint_writer} - {None}
        if unknown := sorted(self.further_engines.keys() - known):
            raise ConfigError(
                f"data.further_engines has {unknown[0]!r}, and beside the sampled model {type(module).__name__} has "
                f"{' and '.join(sorted(known)) or 'none that writes'}; expected no other names"
            )

    def _set_training_prompts(self) -> None:
        prompts, of, drop = self.prompts_of(self.train_split), f"the split {self.train_split!r}", self.long_prompts == "drop"
        advice = "raise it" if drop else "raise it, or set long_prompts: drop to train without them"
        self.training_prompts = within_limit(prompts, self.max_prompt_tokens, of, advice, drop)
        self.identities["training split"] = identity(self.train_split, self.training_prompts)
        if drop:
            dropped = len(prompts) - len(self.training_prompts)
            rank_zero_info(
                f"{dropped} of {len(prompts)} prompts of {of} have more than {self.max_prompt_tokens} tokens: dropped"
            )
            for logger in self.trainer.loggers if self.trainer.is_global_zero else ():
                logger.log_metrics({"data/dropped_prompts": float(dropped)}, step=0)

    def _check_contamination(self, tested: dict[str, list[Prompt]]) -> None:
        """Of all benchmarks but those on the training split itself: they are there to show what it is trained on."""
        apart = [name for name, b in self.benchmarks.items() if b.task or b.split != self.train_split]
        if same := sorted(tested.keys() - apart):
            rank_zero_info(f"on the training split itself, and not checked for contamination: benchmark {', '.join(same)}")
        allowed = next((c.max_contaminated for c in self.trainer.callbacks if hasattr(c, "max_contaminated")), 0.0)
        questions = {name: [question_of(p) for p in tested[name]] for name in apart}
        check_contamination([question_of(p) for p in self.training_prompts], questions, allowed)

    def refuse_other_data(self, state: dict) -> None:
        """
        Raises:
            ConfigError: the fit of the checkpoint had other prompts than this one; a checkpoint that does not say is taken.
        """
        if self.trainer.state.fn == "fit":
            check_data(state.get("data", {}), self.identities)

    def prompts_of(self, split: str, task: Task | None = None) -> list[Prompt]:
        """The prompts of a split with their tokens; by default of the task that is trained on.

        Raises:
            ConfigError: the split is empty, or two of its prompts have one id: random draws are addressed by it.
        """
        task = task or self.task
        if (id(task), split) not in self.encoded:
            prompts = encode(task.prompts(split), self.trainer.lightning_module.tokenizer)
            if not prompts:
                raise ConfigError(f"the split {split!r} has no prompts; expected at least one")
            name, count = Counter(p.id for p in prompts).most_common(1)[0]
            if count > 1:
                raise ConfigError(
                    f"the split {split!r} has {count} prompts with the id {name!r}; expected an id of its own for each"
                )
            self.encoded[id(task), split] = prompts
        return self.encoded[id(task), split]

    def train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(self)

    @abstractmethod
    def minibatches(self) -> Iterator[Minibatch]:
        """The rest of the current epoch's minibatches. A generator: nothing happens before the first `next()`."""

    @property
    def position(self) -> int:
        """Minibatches of the current round that are done; 0 at its end, where nothing of it is left to save."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return done if done < self.trainer.num_training_batches else 0

    def engine_of(self, name: str) -> Engine:
        """The engine of a model of the module."""
        if name == self.trainer.lightning_module.trained_names[0]:
            return self.engine
        return self.further_engines.setdefault(name, TransformersEngine())

    def sync_weights(self, name: str | None = None) -> Engine:
        """Brings the engine of a model, by default of the sampled one, to its current weights, and checks that it has them.
        Every rank must call it."""
        module = self.trainer.lightning_module
        name = name or module.trained_names[0]
        engine, model = self.engine_of(name), module.model_of(name)
        with module.clock("sync"):
            if self.bound.get(name) is not model:
                engine.bind(model, module.tokenizer)
                self.bound[name], engine.version = model, None
            if engine.version == int(module.updates):
                return engine
            weights = ChecksummedWeights(model.named_full_weights(), engine.dtype)
            engine.load_weights(weights, int(module.updates))
            if engine.copies:
                with module.clock("check"):
                    check_load(self.trainer, engine, model, weights, self.temperature)
        return engine

    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        task: Task | None = None,
        of: str = "the round",
        engine: Engine | None = None,
    ) -> tuple[list[Completion], list[Verdict]]:
        """`spec.n` judged completions of each prompt, prompt by prompt, by default of the sampled model.

        Raises:
            EngineError: the engine returned fewer or more: the numbers would be those of other samples than asked for.
        """
        completions = self.complete(prompts, spec, of, engine)
        return completions, self.judged(prompts, completions, spec.n, task)

    def complete(
        self, prompts: Sequence[Prompt], spec: SamplingSpec, of: str = "the round", engine: Engine | None = None
    ) -> list[Completion]:
        """`spec.n` completions of each prompt, prompt by prompt, by default of the sampled model.

        Raises:
            EngineError: the engine returned fewer or more: the numbers would be those of other samples than asked for.
        """
        with self.trainer.lightning_module.clock("sample"), torch.no_grad(), self.trainer.precision_plugin.forward_context():
            completions = (engine or self.engine).generate(prompts, spec)
        if len(completions) != len(prompts) * spec.n:
            reached = prompts[min(len(completions) // spec.n, len(prompts) - 1)]
            raise EngineError(
                f"the engine returned {len(completions)} completions for {of}, which end at prompt {reached.id!r}; "
                f"expected {spec.n} of each of {len(prompts)} prompts"
            )
        return completions

    def judged(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], n: int, task: Task | None = None
    ) -> list[Verdict]:
        """The verdicts on `n` completions of each prompt, by default of the task that is trained on."""
        with self.trainer.lightning_module.clock("judge"):
            owners = [prompt for prompt in prompts for _ in range(n)]
            return (task or self.task).judge_all(list(zip(owners, completions, strict=True)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A minibatch stays where it was sampled: its micro-batches are moved, one at a time."""
        return batch if isinstance(batch, Minibatch) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> list[BenchmarkLoader]:
        module = self.trainer.lightning_module
        return [BenchmarkLoader(self, name, model) for model in module.trained_names for name in self.benchmarks]

    def test_dataloader(self) -> list[BenchmarkLoader]:
        return self.val_dataloader()

    def predict_dataloader(self) -> list[BenchmarkLoader]:
        return self.val_dataloader()


class BenchmarkLoader:
    """Batches of one benchmark, each sampled when it is asked for. The seeds do not depend on the round, so that curves compare
    like with like and `validate` on a checkpoint repeats the point of the curve."""

    def __init__(self, data: TaskDataModule, name: str, model: str) -> None:
        self.data, self.name, self.benchmark, self.model = data, name, data.benchmarks[name], model
        self.shown = name if model == data.trainer.lightning_module.trained_names[0] else f"{name}_{model}"
        self.prompts = data.prompts_of(self.benchmark.split, self.benchmark.task)
        if self.benchmark.limit is not None and self.benchmark.limit < len(self.prompts):
            generator = torch.Generator().manual_seed(address("benchmark", self.benchmark.split))
            chosen = torch.randperm(len(self.prompts), generator=generator)[: self.benchmark.limit]
            self.prompts = [self.prompts[i] for i in sorted(chosen.tolist())]

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.benchmark.prompts_per_batch)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        return self.batches()

    def batches(self) -> Iterator[EvaluationBatch]:
        size, trainer, task = self.benchmark.prompts_per_batch, self.data.trainer, self.benchmark.task
        spec = replace(self.benchmark.sampling, seed=address(self.data.seed, "evaluate", self.name))
        for first in range(0, len(self.prompts), size):
            mine = self.prompts[first : first + size][trainer.global_rank :: trainer.world_size]
            with trainer.lightning_module.clock("validate"):
                engine = self.data.sync_weights(self.model)
                arguments = mine, spec, task, f"the benchmark {self.shown}", engine
                completions, verdicts = agree(trainer, f"sampling {self.shown}", self.data.sample, *arguments)
            correct = torch.tensor([float(v.outcome == "correct") for v in verdicts]).view(len(mine), spec.n)
            judged = tuple(mine), tuple(completions), tuple(verdicts)
            yield EvaluationBatch(self.shown, correct, *judged, k=tuple(self.benchmark.k))
        self.data.engine_of(self.model).sleep()
