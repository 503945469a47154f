"""Rounds: prompts -> completions -> verdicts -> credit -> selection, once an epoch, before its first update.

A round belongs to an epoch number, so asking for it twice is harmless and a resumed run finds its place. Prompts and every
random draw are addressed by (seed, round, attempt, prompt), so no generator state is saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist

from ..credit.group import Advantage
from ..engines.protocol import Engine
from ..guards.vocabulary import check_real_tokens
from ..parallel import agree, sum_over_ranks
from ..seeding import address
from ..selection.zero_variance import live_rows
from ..tasks.grading import Grader
from ..tasks.protocol import Task
from ..types import Completion, ConfigError, Minibatch, Prompt, Round, SamplingSpec, Segment
from .assemble import Samples, assemble
from .gold import Ending, GoldAnswer, as_sampled, check_gold
from .hints import Hints
from .prompts import PromptOrder
from .rewards import Reward, add_rewards, check_rewards
from .task_datamodule import Benchmark, TaskDataModule
from .transforms import RoundTransform, check_streams, find_transforms


class RolloutDataModule(TaskDataModule):
    """Fresh completions each epoch.

    Args:
        task: prompts, reference answers and judgement.
        prompts_per_step: prompts of one update, over all ranks.
        completions_per_prompt: group size.
        sampling: how completions are drawn; `n` and `seed` are set from the other arguments.
        rewards: {name: Reward}, further rewards and the weights of all; those of the task that are not named have weight 1.
            Benchmarks are judged by their task alone.
        grader: the processes that further rewards run in.
        gold: the reference answer in the place of what was sampled after the reasoning, for a module that learns from it.
            Verdicts are those of what was sampled.
        hints: how completions begin that another model of the module writes first, for a module that has one.
        steps_per_round: updates that share one sampling of the policy, each on prompts of its own.
        inner_epochs: passes over the round.
        advantage: the base credit; null where a callback sets every stream.
        zero_variance: `keep` or `drop` the groups whose every coefficient is 0.
        fill_to: rows wanted per update after dropping, also by a callback that prunes groups. As many prompts are sampled as
            that takes, and missing groups again from further prompts.
        max_fill_rounds: how often again at most.
        engine: writes the completions; by default the embedded one.
        train_split: of the task.
        benchmarks: {name: Benchmark}, evaluated at validation.
        max_prompt_tokens: of a prompt; by default only the engine's limit holds.
        long_prompts: `drop` longer ones from the training split, or refuse them; benchmarks keep all their prompts.
        further_engines: {model: Engine} of models of the module other than the sampled one; by default embedded ones.
        seed: of every random draw.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_step: int,
        completions_per_prompt: int,
        sampling: SamplingSpec = SamplingSpec(),  # noqa: B008 - frozen
        rewards: dict[str, Reward] | None = None,
        grader: Grader = Grader(),  # noqa: B008 - frozen
        gold: GoldAnswer | None = None,
        hints: Hints | None = None,
        steps_per_round: int = 1,
        inner_epochs: int = 1,
        advantage: Advantage | None = Advantage(),  # noqa: B008 - frozen
        zero_variance: Literal["keep", "drop"] = "keep",
        fill_to: int | None = None,
        max_fill_rounds: int = 3,
        engine: Engine | None = None,
        train_split: str = "train",
        benchmarks: dict[str, Benchmark] | None = None,
        max_prompt_tokens: int | None = None,
        long_prompts: Literal["error", "drop"] = "error",
        further_engines: dict[str, Engine] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(task, train_split, benchmarks or {}, engine, seed, max_prompt_tokens, long_prompts, further_engines)
        sizes = {"prompts_per_step": prompts_per_step, "completions_per_prompt": completions_per_prompt,
                 "steps_per_round": steps_per_round, "inner_epochs": inner_epochs}  # fmt: skip
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        if advantage is not None and completions_per_prompt == 1:
            raise ConfigError(
                "completions_per_prompt is 1, and a group of one has no advantage over itself: every update would be empty; "
                "set completions_per_prompt to 2 or more, or advantage to null with a callback that sets the credit"
            )
        if max_fill_rounds < 0:
            raise ConfigError(f"max_fill_rounds is {max_fill_rounds}; expected 0 or more")
        if sampling.n not in (1, completions_per_prompt):
            raise ConfigError(f"sampling.n is {sampling.n}; leave it out: completions_per_prompt is {completions_per_prompt}")
        if sampling.seed:
            raise ConfigError(f"sampling.seed is {sampling.seed}; leave it out: the run's seed addresses every draw")
        if hints and hints.tokens >= sampling.max_new_tokens:
            raise ConfigError(
                f"hints.tokens is {hints.tokens} and sampling.max_new_tokens {sampling.max_new_tokens}; expected room for more "
                "than the hint"
            )
        self.rewards, self.grader, self.gold, self.hints = rewards or {}, grader, gold, hints
        check_rewards(self.rewards, task.reward_names)
        self.prompts_per_step, self.completions_per_prompt = prompts_per_step, completions_per_prompt
        self.sampling, self.steps_per_round, self.inner_epochs = sampling, steps_per_round, inner_epochs
        self.temperature = sampling.scoring_temperature
        self.advantage, self.zero_variance = advantage, zero_variance
        self.fill_to, self.max_fill_rounds = fill_to, max_fill_rounds
        self.updates_per_round = steps_per_round * inner_epochs
        self.held: Round | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.held = None
        if stage != "fit":
            return
        module, trainer = self.trainer.lightning_module, self.trainer
        if self.prompts_per_step < trainer.world_size:
            raise ConfigError(
                f"prompts_per_step is {self.prompts_per_step} with {trainer.world_size} processes; expected at least one each"
            )
        if getattr(module, "importance", None) and (self.sampling.top_p < 1 or self.sampling.top_k):
            raise ConfigError(
                f"sampling.top_p is {self.sampling.top_p} and sampling.top_k {self.sampling.top_k} together with importance; "
                "expected top_p 1 and top_k 0: no weight brings back the tokens that a cut leaves out; sample without a cut, "
                "or leave importance out"
            )
        if self.hints and not module.hint_writer:
            raise ConfigError(
                f"data.hints is given, and {type(module).__name__} has no other model to write them; leave it out"
            )
        reads_gold = any(Segment.GOLD in c.segments for c in module.components.values())
        check_gold(self.gold, reads_gold, type(module).__name__, self.task, self.training_prompts)
        self.transforms = find_transforms(trainer.callbacks)
        read = set().union(*module.streams.values())
        check_streams(self.transforms, bool(self.advantage), module.advantage_streams, read, type(module).__name__)
        self.credits = [t for t in self.transforms if t.stage != "select"]
        selects = [t for t in self.transforms if t.stage == "select"]
        self.group_selects = [t for t in selects if t.scope == "group" and not t.columns]
        self.batch_selects = [t for t in selects if t not in self.group_selects]
        self.groups_per_step = self._groups_to_fill(selects)
        if self.fill_to is not None and any(t.columns for t in self.credits):
            raise ConfigError("fill_to needs the credit while sampling, but a callback's credit reads columns scored later")

    def _groups_to_fill(self, selects: list[RoundTransform]) -> int | None:
        """Groups of an update that `fill_to` asks for, over all ranks; None where nothing is filled."""
        if self.fill_to is None:
            return None
        rows: int | None = self.completions_per_prompt
        for select in selects:
            rows = rows and select.rows_left_of(rows)
        if rows is None:
            raise ConfigError(
                f"fill_to is {self.fill_to}, and a callback leaves a number of rows that is not the same for every group; "
                "expected one that prunes each group by a rate: leave fill_to out, and raise prompts_per_step instead"
            )
        if (self.zero_variance == "keep" and not selects) or self.fill_to % rows:
            raise ConfigError(
                f"fill_to is {self.fill_to} with zero_variance {self.zero_variance}, where {rows} rows of a group of "
                f"{self.completions_per_prompt} are left; expected zero_variance: drop or a callback that prunes groups, and a "
                f"multiple of {rows}"
            )
        return self.fill_to // rows

    def minibatches(self) -> Iterator[Minibatch]:
        held, start = self.hold_round()
        for position in range(start, self.updates_per_round):
            yield held.minibatch(position % self.steps_per_round)

    def hold_round(self) -> tuple[Round, int]:
        """The round of the current epoch and the position to go on from; sampled now if it is not there yet."""
        epoch = self.trainer.current_epoch
        if self.held is None or self.held.number != epoch:
            sampled, self.held = self.roll_out(epoch)
            self.start = 0
            for callback in self.trainer.callbacks:
                if hasattr(callback, "on_round"):
                    callback.on_round(self.trainer, self.trainer.lightning_module, sampled, self.held)
        return self.held, self.start

    def roll_out(self, epoch: int) -> tuple[Round, Round]:
        """All rows sampled for a round, with their credit, and the rows kept, with the columns the losses read."""
        module = self.trainer.lightning_module
        self.sync_weights()
        if self._hinted(epoch):
            self.sync_weights(module.hint_writer)
        if self.gold and self.held is None:
            arguments = self.task, self.training_prompts, module.tokenizer
            positions = module.sampling_model.hf.config.max_position_embeddings
            self.gold.check_length(*arguments, self.sampling.max_new_tokens, positions)
        sampled = agree(self.trainer, "sampling a round", self._sample_round, epoch)
        self.engine.sleep()
        if self._hinted(epoch):
            self.engine_of(module.hint_writer).sleep()
        drawn = torch.tensor([len(sampled.prompts), sum(len(c.token_ids) for c in sampled.completions)])
        prompts, tokens = sum_over_ranks(self.trainer, drawn).tolist()
        module.prompts += int(prompts)
        module.sampled_tokens += int(tokens)
        if any(t.columns for t in self.credits):
            sampled = self._apply(self.credits, sampled)
        kept = self._apply(self.batch_selects, self._select(sampled))
        return sampled, module.add_columns(kept, module.loss_columns(self.updates_per_round))

    def _sample_round(self, epoch: int) -> Round:
        samples, wanted, live = Samples(), self._groups_wanted(), 0
        for attempt in range(1 + (self.max_fill_rounds if wanted is not None else 0)):
            missing = None if attempt == 0 else wanted - live
            prompts, steps = self._draw(epoch, attempt, missing)
            seed = address(self.seed, "train", epoch, attempt)
            spec = replace(self.sampling, n=self.completions_per_prompt, seed=seed)
            completions = self._complete(prompts, spec, epoch)
            verdicts = self.judged(prompts, completions, spec.n)
            with self.trainer.lightning_module.clock("judge"):
                owners = [prompt for prompt in prompts for _ in range(self.completions_per_prompt)]
                verdicts = add_rewards(list(zip(owners, completions, strict=True)), verdicts, self.rewards, self.grader)
            samples.prompts += prompts
            samples.steps += steps
            samples.completions += completions
            samples.verdicts += verdicts
            held = self._credit(self._assemble(samples, epoch))
            if wanted is None:
                break
            live = len(self._select(held).group_index.unique())
            if live >= wanted:
                break
        else:
            warnings.warn(
                f"round {epoch}: {live} of {wanted} groups after {self.max_fill_rounds} further samplings", stacklevel=2
            )
        return held

    def _hinted(self, epoch: int) -> bool:
        return self.hints is not None and epoch < self.hints.rounds

    def _complete(self, prompts: list[Prompt], spec: SamplingSpec, epoch: int) -> list[Completion]:
        module = self.trainer.lightning_module
        completions = self._hinted_completions(prompts, spec) if self._hinted(epoch) else self.complete(prompts, spec)
        largest = max(token for completion in completions for token in completion.token_ids)
        for name in module.sources:
            check_real_tokens(largest, module.model_of(name).vocabulary_size, name)
        return completions

    def _hinted_completions(self, prompts: list[Prompt], spec: SamplingSpec) -> list[Completion]:
        module = self.trainer.lightning_module
        write = partial(self.complete, of="the hints", engine=self.engine_of(module.hint_writer))
        known = module.sampling_model.vocabulary_size
        return self.hints.complete(prompts, spec, write, self.complete, module.tokenizer, known)

    def _assemble(self, samples: Samples, epoch: int) -> Round:
        ending = self._ending if self.gold else as_sampled
        return assemble(samples, epoch, self.engine.version, self.sampling.scoring_temperature, ending)

    def _ending(self, prompt: Prompt, completion: Completion) -> Ending:
        return self.gold.ending(self.task.gold(prompt), completion, self.trainer.lightning_module.tokenizer)

    def _draw(self, epoch: int, attempt: int, missing: int | None) -> tuple[list, list[int]]:
        """This rank's prompts and the update each belongs to: a whole round, or the missing groups of one."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        prompts, per_step = self.training_prompts, max(self.prompts_per_step, self.groups_per_step or 0)
        order = PromptOrder(len(prompts), self.seed, "order", attempt)
        if missing is None:
            places = [s * per_step + i for s in range(self.steps_per_round) for i in range(rank, per_step, world)]
        else:
            places = [rank + j * world for j in range(missing)]
        drawn = [order[epoch * per_step * self.steps_per_round + place] for place in places]
        steps = [place // per_step % self.steps_per_round for place in places]
        return [replace(prompts[index], draw=turn) for index, turn in drawn], steps

    def _groups_wanted(self) -> int | None:
        """Groups that this rank wants in a round after dropping; null where nothing is refilled."""
        if self.groups_per_step is None:
            return None
        return self.steps_per_round * len(range(self.trainer.global_rank, self.groups_per_step, self.trainer.world_size))

    def _credit(self, held: Round) -> Round:
        if self.advantage:
            credit = self.advantage(held.rewards, held.group_index)
            held = held.with_coefficients(**dict.fromkeys(self.trainer.lightning_module.advantage_streams, credit))
        return held if any(t.columns for t in self.credits) else self._apply(self.credits, held)

    def _apply(self, transforms: list, held: Round) -> Round:
        for transform in transforms:
            if transform.columns:
                held = self.trainer.lightning_module.add_columns(held, transform.columns)
            held = transform.transform(held)
        return held

    def _select(self, held: Round) -> Round:
        """The round without dead groups, each group pruned; when refilled, exactly the wanted groups, spread evenly over the
        updates."""
        if self.zero_variance == "drop":
            held = held.take(live_rows(held.coefficients, held.group_index))
        held = self._apply(self.group_selects, held)
        wanted = self._groups_wanted()
        if wanted is None or not len(held):
            return held
        place = torch.unique(held.group_index, return_inverse=True)[1]
        return replace(held, step=place // (wanted // self.steps_per_round)).take(place < wanted)

    def state_dict(self) -> dict:
        """The held round of every rank and the position in it; nothing at the end of a round. Called on every rank."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        finished = self.held is None or done >= self.trainer.num_training_batches
        mine = None if finished else self.held.to_state()
        ranks = [mine]
        if self.trainer.world_size > 1:
            ranks = [None] * self.trainer.world_size
            dist.gather_object(mine, ranks if self.trainer.is_global_zero else None, dst=0)
        return {"ranks": ranks, "start": self.position, "data": self.identities}

    def load_state_dict(self, state: dict) -> None:
        self.refuse_other_data(state)
        ranks = state["ranks"]
        if all(rank is None for rank in ranks):
            return
        if len(ranks) != self.trainer.world_size:
            raise ConfigError(
                f"the checkpoint was saved inside a round by {len(ranks)} processes; this run has {self.trainer.world_size}: "
                "resume with as many, or from a checkpoint of a round's end"
            )
        self.held, self.start = Round.from_state(ranks[self.trainer.global_rank]), state["start"]
