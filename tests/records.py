"""Small records and a small run for tests: a `Round` from lists, and a module and rounds that a Trainer can fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from fulgurite.timing import PhaseClock
from fulgurite.types import Completion, Prompt, Round, Segment, Verdict

COUNTERS = ("rounds", "prompts", "updates", "sampled_tokens", "trained_tokens", "empty_minibatches", "skipped_updates")


def make_round(
    rewards: Sequence[Sequence[float]],
    *,
    number: int = 0,
    lengths: Sequence[int] | None = None,
    cut: Sequence[bool] | None = None,
    texts: Sequence[str] | None = None,
    outcomes: Sequence[str] | None = None,
    named: Sequence[dict[str, float]] | None = None,
    coefficients: dict[str, Sequence[float]] | None = None,
    prompts: Sequence[Prompt] | None = None,
    steps: int = 1,
) -> Round:
    """A round from rewards by group; everything else is by row, in the same order.

    Args:
        rewards: one list per prompt, one reward per completion.
        lengths: tokens of each completion; default 2. cut: whether `max_new_tokens` ended it; default no.
        texts, outcomes, named: of each completion; by default `text <row>`, `correct` if the reward is above 0, and
            {"answer": reward}.
        coefficients: {stream: one number per row}; default none.
        prompts: default `q0`, `q1`, ... with two tokens and the answer `answer <n>`.
        steps: updates of the round; groups are dealt to them in turn.
    """
    flat = [reward for group in rewards for reward in group]
    groups = torch.tensor([q for q, group in enumerate(rewards) for _ in group], dtype=torch.int64)
    n = len(flat)
    lengths, cut = lengths or [2] * n, cut or [False] * n
    texts = texts or [f"text {row}" for row in range(n)]
    outcomes = outcomes or ["correct" if reward > 0 else "wrong" for reward in flat]
    named = named or [{"answer": reward} for reward in flat]
    if prompts is None:
        prompts = [
            Prompt(id=f"q{q}", text=f"question {q}", answer=f"answer {q}", token_ids=(q + 1, 1)) for q in range(len(rewards))
        ]
    completions = [
        Completion(tuple(range(10 + row, 10 + row + length)), (-0.5,) * length, "length" if ended else "stop", text)
        for row, (length, ended, text) in enumerate(zip(lengths, cut, texts, strict=True))
    ]
    starts = [len(prompts[q].token_ids) for q in groups.tolist()]
    width = max((start + length for start, length in zip(starts, lengths, strict=True)), default=1)
    tokens = torch.zeros(n, width, dtype=torch.int64)
    segments = torch.zeros(n, width, dtype=torch.uint8)
    for row, (start, completion) in enumerate(zip(starts, completions, strict=True)):
        end = start + len(completion.token_ids)
        tokens[row, :end] = torch.tensor([*prompts[int(groups[row])].token_ids, *completion.token_ids])
        segments[row, :start], segments[row, start:end] = int(Segment.PROMPT), int(Segment.SAMPLED)
    return Round(
        number=number,
        weight_version=0,
        prompts=tuple(prompts),
        completions=tuple(completions),
        verdicts=tuple(map(Verdict, outcomes, named, flat)),
        group_index=groups,
        step=groups % steps,
        tokens=tokens,
        segments=segments,
        rewards=torch.tensor(flat, dtype=torch.float32),
        coefficients={name: torch.tensor(values) for name, values in (coefficients or {}).items()},
    )


class FakeTime:
    """A source of seconds that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StubModule(L.LightningModule):
    """Trains one weight vector by `kinds` of minibatches: `good` (an SGD step along the gradient 1), `bad` (loss not
    finite, skipped) and `empty`. A good update takes 2 fake seconds and trains 5 tokens.

    Args:
        dtype, rate: of the weight and the learning rate.
        dies_at: (round, update) whose step raises `Killed` once it is taken.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, rate: float = 0.1, dies_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.linspace(1, 2, 50).to(dtype))
        self.rate, self.dies_at = rate, dies_at
        self.time = FakeTime()
        self.clock = PhaseClock(wall=self.time, cpu=self.time)
        self.last_update: dict[str, float] = {}
        self.streams: dict[str, set[str]] = {"policy": set()}
        for name in COUNTERS:
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [self.weight], "name": "policy", "lr": self.rate}])

    def training_step(self, batch: dict, batch_idx: int) -> None:
        kind, optimizer = batch["kind"], self.optimizers()
        with self.clock("train"):
            self.updates += 1
            self.last_update = {"loss": 0.0, "skipped": float(kind == "bad"), "empty": float(kind == "empty")}
            if kind == "empty":
                return
            self.time.now += 2
            loss = self.weight.float().sum() * (float("nan") if kind == "bad" else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            norm = self.weight.grad.float().norm()
            self.last_update |= {"loss": float(loss.detach()), "grad_norm/policy": float(norm), "lr/policy": self.rate}
            if kind == "good":
                optimizer.step()
                self.trained_tokens += 5
        if self.dies_at == (self.current_epoch, batch_idx):
            raise Killed

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        pass


class Killed(Exception):
    """Stands for a kill between an update and what follows it."""


class StubRounds(L.LightningDataModule):
    """Calls `on_round` at the first minibatch of each epoch, as `RolloutDataModule` does, and resumes inside a round.
    Sampling takes 3 fake seconds.

    Args:
        rounds: epoch e gets `rounds[e % len(rounds)]`; rows whose every coefficient is 0 are not kept.
        kinds: of the minibatches of each epoch, see `StubModule`.
        validate: validate after each round, which samples for 7 fake seconds.
    """

    def __init__(self, rounds: Sequence[Round], kinds: Sequence[Sequence[str]], validate: bool = False) -> None:
        super().__init__()
        self.rounds, self.kinds, self.validate = rounds, kinds, validate
        self.held, self.start = -1, 0
        self.engine = SimpleNamespace(dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.kinds[0])

    def setup(self, stage: str) -> None:
        self.held, self.start = -1, 0

    def train_dataloader(self) -> _Lazy:
        return _Lazy(self.minibatches, len(self.kinds[0]))

    def val_dataloader(self) -> list[_Lazy]:
        return [_Lazy(self.benchmark, 1)] if self.validate else []

    def minibatches(self) -> Iterator[dict]:
        trainer = self.trainer
        module, epoch = trainer.lightning_module, trainer.current_epoch
        if self.held != epoch:
            self.held, self.start, sampled = epoch, 0, self.rounds[epoch % len(self.rounds)]
            with module.clock("sample"):
                module.time.now += 3
            module.sampled_tokens += sum(len(completion.token_ids) for completion in sampled.completions)
            kept = sampled.take(_live(sampled))
            for callback in trainer.callbacks:
                if hasattr(callback, "on_round"):
                    callback.on_round(trainer, module, sampled, kept)
        for kind in self.kinds[epoch % len(self.kinds)][self.start :]:
            yield {"kind": kind}

    def benchmark(self) -> Iterator[dict]:
        module = self.trainer.lightning_module
        with module.clock("validate"), module.clock("sample"):
            module.time.now += 7
        yield {}

    def state_dict(self) -> dict:
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return {"held": -1, "start": 0} if done >= len(self) else {"held": self.held, "start": done}

    def load_state_dict(self, state: dict) -> None:
        self.held, self.start = state["held"], state["start"]


class _Lazy:
    def __init__(self, make: callable, length: int) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict]:
        return self.make()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def _live(sampled: Round) -> Tensor:
    live = torch.zeros(len(sampled), dtype=torch.bool)
    for values in sampled.coefficients.values():
        live |= values != 0
    return live if sampled.coefficients else ~live


class RecordingLogger(Logger):
    """Keeps what is logged: `rows` of (x, {name: value})."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = version = "test"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass

    def series(self, name: str) -> list[tuple[int, float]]:
        """(x, value) of one name in the order written."""
        return [(step, metrics[name]) for step, metrics in self.rows if name in metrics]
