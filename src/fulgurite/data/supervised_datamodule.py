"""Minibatches of solutions to learn from. An epoch is `updates_per_round` of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from ..engines.protocol import Engine
from ..tasks.protocol import Task
from ..types import Completion, ConfigError, Minibatch, Segment, Verdict
from .assemble import Samples, assemble
from .prompts import PromptOrder
from .task_datamodule import Benchmark, TaskDataModule
from .transforms import find_transforms


class SupervisedDataModule(TaskDataModule):
    """Solutions of the task's training problems, end-of-sequence token included, in an order addressed by the position.

    Args:
        task: prompts and solutions.
        prompts_per_step: solutions of one update, over all ranks.
        updates_per_round: updates between two validations.
        engine: writes the completions of the benchmarks; by default the embedded one.
        train_split: of the task.
        benchmarks: {name: Benchmark}, evaluated at validation.
        max_prompt_tokens: of a prompt; by default only the model's positions are a limit.
        long_prompts: `drop` longer ones from the training split, or refuse them; benchmarks keep all their prompts.
        seed: of every random draw.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_step: int,
        updates_per_round: int,
        engine: Engine | None = None,
        train_split: str = "train",
        benchmarks: dict[str, Benchmark] | None = None,
        max_prompt_tokens: int | None = None,
        long_prompts: Literal["error", "drop"] = "error",
        seed: int = 0,
    ) -> None:
        super().__init__(task, train_split, benchmarks or {}, engine, seed, max_prompt_tokens, long_prompts)
        if prompts_per_step < 1 or updates_per_round < 1:
            raise ConfigError(
                f"prompts_per_step is {prompts_per_step} and updates_per_round {updates_per_round}; expected at least 1"
            )
        self.prompts_per_step, self.updates_per_round = prompts_per_step, updates_per_round

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        module = self.trainer.lightning_module
        if transforms := find_transforms(self.trainer.callbacks):
            raise ConfigError(
                f"{type(transforms[0]).__name__} changes rounds of completions, and SupervisedDataModule has none; expected "
                "RolloutDataModule, or no such callback"
            )
        if streams := sorted(set().union(*module.streams.values())):
            raise ConfigError(
                f"{type(module).__name__} reads the coefficient stream {streams[0]!r}, which SupervisedDataModule does not "
                "set; expected RolloutDataModule, or the module SupervisedFineTuning"
            )
        self.solution_of(0)

    def minibatches(self) -> Iterator[Minibatch]:
        start, self.start = self.start, 0
        for position in range(start, self.updates_per_round):
            self.trainer.lightning_module.prompts += self.prompts_per_step
            yield self.minibatch(self.trainer.current_epoch * self.updates_per_round + position)

    def solution_of(self, index: int) -> Completion:
        """The solution of a training prompt, in tokens."""
        tokenizer = self.trainer.lightning_module.tokenizer
        text = self.task.solution(self.training_prompts[index])
        ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        return Completion(ids, (0.0,) * len(ids), "stop", text)

    def minibatch(self, position: int) -> Minibatch:
        """This rank's rows of the update at a position counted from the start of the run."""
        prompts, samples = self.training_prompts, Samples()
        order = PromptOrder(len(prompts), self.seed, "order", 0)
        for place in range(self.trainer.global_rank, self.prompts_per_step, self.trainer.world_size):
            index, _ = order[position * self.prompts_per_step + place]
            samples.prompts.append(prompts[index])
            samples.completions.append(self.solution_of(index))
            samples.verdicts.append(Verdict("correct", {}, 0.0))
            samples.steps.append(0)
        rows = assemble(samples, number=0, weight_version=0, temperature=1.0).all_rows()
        limit = self.trainer.lightning_module.sampling_model.hf.config.max_position_embeddings
        if rows.tokens.shape[1] > limit:
            raise ConfigError(
                f"a prompt with its solution has {rows.tokens.shape[1]} tokens; "
                f"expected at most {limit}, the model's positions: drop long rows from the split"
            )
        gold = torch.where(rows.segments == int(Segment.SAMPLED), int(Segment.GOLD), rows.segments).to(torch.uint8)
        return Minibatch(rows.tokens, gold)

    def state_dict(self) -> dict:
        return {"start": self.position, "data": self.identities}

    def load_state_dict(self, state: dict) -> None:
        self.refuse_other_data(state)
        self.start = state["start"]
