"""The records that flow through a run: prompts -> completions -> verdicts -> round -> minibatches.

All are frozen dataclasses; a stage returns a new record and never changes the one it was given.

Letters used in shapes everywhere: Q prompts, G completions of a prompt, N = Q * G rows, L tokens of a padded row
(prompt and completion), T tokens of a padded completion, K kept tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum

import torch
from torch import Tensor


class ConfigError(ValueError):
    """A setting that cannot work. The message says what was seen, what was expected and what to change."""


class Segment(IntEnum):
    """What a token of a row is; every mask is derived from it."""

    PAD = 0
    PROMPT = 1
    HINT = 2
    SAMPLED = 3
    FORCED = 4
    GOLD = 5


COMPLETION_SEGMENTS = (Segment.HINT, Segment.SAMPLED, Segment.FORCED, Segment.GOLD)


@dataclass(frozen=True)
class Prompt:
    """A question. `token_ids` is filled once by the tokenizer; `draw` counts repeats of the prompt within a run of prompts,
    so that a prompt drawn twice gets fresh samples; `thinking` is the switch of the template that `messages` go through."""

    id: str
    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    answer: str | None = None
    source: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    draw: int = 0
    thinking: bool | None = None


@dataclass(frozen=True)
class SamplingSpec:
    """How completions are drawn; read by the engine and by the scorer, so both see the same temperature.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many most likely tokens; 0 keeps all.
        max_new_tokens: longest completion, end-of-sequence token included.
        n: completions per prompt.
        stop: texts that end a completion.
        seed: together with a prompt's id, its draw and the sample index it addresses every random draw.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"sampling.temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p is {self.top_p}; expected a number in (0, 1], 1 switches it off")
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k is {self.top_k}; expected 0 (off) or more")
        if self.max_new_tokens < 1:
            raise ConfigError(f"sampling.max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if "" in self.stop:
            raise ConfigError("sampling.stop has an empty text, which would end every completion at once; leave it out")
        if self.n < 1:
            raise ConfigError(f"sampling.n is {self.n}; expected at least 1")

    @property
    def scoring_temperature(self) -> float:
        """The temperature at which log-probabilities are taken; greedy decoding is scored at 1."""
        return self.temperature or 1.0


@dataclass(frozen=True)
class Completion:
    """What an engine returned for one prompt. `token_ids` are exactly those sampled, the end-of-sequence token included;
    `logprobs` are the engine's, in nats, one per token; `finish_reason` is `stop` or `length`; the first `hint` tokens are
    another model's."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    text: str
    hint: int = 0


@dataclass(frozen=True)
class Verdict:
    """A judgement: `outcome` is `correct`, `wrong` or `ungradable`; `rewards` by name and `reward`, their weighted sum;
    `answer` is what was read from the completion, normalised, so that equal answers are equal texts: they vote together.
    `failure` is why judging it went wrong, where it did: a grader that was killed, or one that raised."""

    outcome: str
    rewards: Mapping[str, float]
    reward: float
    answer: str | None = None
    failure: str = ""


@dataclass(frozen=True)
class Round:
    """Q prompts x G completions as N flat rows, right-padded to L tokens.

    Attributes:
        number: the epoch this round belongs to.
        weight_version: number of updates behind the weights that sampled it.
        prompts: Q prompts; completions, verdicts: N each.
        group_index: (N,) int64, the row's prompt. step: (N,) int64, the update of the round the row belongs to.
        tokens, segments: (N, L) int64 and uint8 (`Segment`).
        rewards: (N,) float32.
        coefficients: {stream: (N,) float32}, one stream per loss component.
        columns: {name: (N, L) float32}, scalars per token without gradient; entry t belongs to token t.
        counted_only: (N,) bool, rows that denominators count and that nothing else reads; None: no such row.
        temperature: at which the completions were sampled and are scored.
    """

    number: int
    weight_version: int
    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]
    group_index: Tensor
    step: Tensor
    tokens: Tensor
    segments: Tensor
    rewards: Tensor
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    counted_only: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.group_index)

    def read_rows(self) -> Tensor:
        """(N,) bool: the rows that are scored and trained on."""
        return torch.ones(len(self), dtype=torch.bool) if self.counted_only is None else ~self.counted_only

    def take(self, rows: Tensor) -> Round:
        """The round with only `rows` (indices or a bool mask, (N,)), gathered; prompts stay, so group_index stays valid."""
        indices = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        chosen = indices.tolist()
        tensors = {f.name: getattr(self, f.name)[indices] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(
            self,
            completions=tuple(self.completions[i] for i in chosen),
            verdicts=tuple(self.verdicts[i] for i in chosen),
            coefficients={k: v[indices] for k, v in self.coefficients.items()},
            columns={k: v[indices] for k, v in self.columns.items()},
            **tensors,
        )

    def minibatch(self, step: int) -> Minibatch:
        """The rows of one update of this round."""
        return self.all_rows().take((self.step == step).nonzero().flatten())

    def all_rows(self) -> Minibatch:
        """Every row, as the losses see them."""
        return Minibatch(
            self.tokens, self.segments, self.coefficients, self.columns, self.counted_only, temperature=self.temperature
        )

    def to_state(self) -> dict:
        """Tensors, lists, dicts, strings and numbers only, so that a checkpoint loads with `weights_only=True`."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("prompts", "completions", "verdicts"):
            state[name] = [asdict(record) for record in state[name]]
        return {**state, "coefficients": dict(self.coefficients), "columns": dict(self.columns)}

    @classmethod
    def from_state(cls, state: Mapping) -> Round:
        records = {"prompts": Prompt, "completions": Completion, "verdicts": Verdict}
        return cls(**{**state, **{name: tuple(kind(**r) for r in state[name]) for name, kind in records.items()}})

    def with_coefficients(self, **streams: Tensor) -> Round:
        """The round with streams (N,) set; detached, float32."""
        return replace(self, coefficients={**self.coefficients, **{k: v.detach().float() for k, v in streams.items()}})

    def with_counted_only(self, rows: Tensor) -> Round:
        """The round in which `rows`, (N,) bool, and those that were so before, are only counted."""
        return replace(self, counted_only=rows | ~self.read_rows())

    def with_columns(self, **columns: Tensor) -> Round:
        """The round with per-token columns (N, L) set; detached, float32."""
        return replace(self, columns={**self.columns, **{k: v.detach().float() for k, v in columns.items()}})


@dataclass(frozen=True)
class Minibatch:
    """Rows of one update as the losses see them: N rows right-padded to L tokens. A micro-batch is a minibatch cut by `take`.

    An entry at position t of a column or mask belongs to token t; its log-probability is conditioned on the tokens before t.
    `denominators` hold one number per loss component, taken over the whole update (all micro-batches, all ranks).
    """

    tokens: Tensor
    segments: Tensor
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    counted_only: Tensor | None = None
    denominators: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(self) -> Tensor:
        """(N,) bool: the rows that are scored and trained on."""
        if self.counted_only is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.tokens.device)
        return ~self.counted_only

    def keep(self, *kinds: Segment) -> Tensor:
        """(N, L) bool: tokens of the given segments; without arguments every token of the completion."""
        mask = torch.zeros_like(self.segments, dtype=torch.bool)
        for kind in kinds or COMPLETION_SEGMENTS:
            mask |= self.segments == int(kind)
        return mask

    def lengths(self) -> Tensor:
        """(N,) int64: tokens of each row, padding not counted."""
        return (self.segments != int(Segment.PAD)).sum(1)

    def take(self, rows: Tensor) -> Minibatch:
        """Rows by index, trimmed to the longest of them."""
        width = int(self.lengths()[rows].max()) if len(rows) else 1
        return replace(
            self,
            tokens=self.tokens[rows, :width],
            segments=self.segments[rows, :width],
            coefficients={k: v[rows] for k, v in self.coefficients.items()},
            columns={k: v[rows, :width] for k, v in self.columns.items()},
            counted_only=None if self.counted_only is None else self.counted_only[rows],
        )

    def to(self, device: torch.device | str) -> Minibatch:
        return replace(
            self,
            tokens=self.tokens.to(device),
            segments=self.segments.to(device),
            coefficients={k: v.to(device) for k, v in self.coefficients.items()},
            columns={k: v.to(device) for k, v in self.columns.items()},
            counted_only=None if self.counted_only is None else self.counted_only.to(device),
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """Judged completions of a benchmark: `correct` (Q, n) float32, 1 where the verdict is `correct`; completions and verdicts
    prompt by prompt; `k` of avg@k, pass@k and maj@k."""

    benchmark: str
    correct: Tensor
    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]
    k: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.correct)

    def to(self, device: torch.device | str) -> EvaluationBatch:
        return replace(self, correct=self.correct.to(device))
