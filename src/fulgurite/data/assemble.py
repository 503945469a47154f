"""Completions and verdicts to a `Round` of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from ..types import Completion, Prompt, Round, Segment, Verdict
from .gold import Ending, as_sampled


@dataclass
class Samples:
    """What one rank has sampled for a round so far: `steps` and `prompts` one per group, the rest one per completion."""

    prompts: list[Prompt] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


def assemble(
    samples: Samples,
    number: int,
    weight_version: int,
    temperature: float,
    ending: Callable[[Prompt, Completion], Ending] = as_sampled,
) -> Round:
    """A round whose rows are prompt, completion and what `ending` puts after it, right-padded; the engine's log-probabilities
    become the column `engine`."""
    size = len(samples.completions) // max(1, len(samples.prompts))
    owners = [prompt for prompt in samples.prompts for _ in range(size)]
    rows = [(p, c, ending(p, c)) for p, c in zip(owners, samples.completions, strict=True)]
    return Round(
        number=number,
        weight_version=weight_version,
        prompts=tuple(samples.prompts),
        completions=tuple(samples.completions),
        verdicts=tuple(samples.verdicts),
        group_index=torch.arange(len(samples.prompts)).repeat_interleave(size),
        step=torch.tensor(samples.steps, dtype=torch.int64).repeat_interleave(size),
        tokens=_pad([[*p.token_ids, *c.token_ids[: e.sampled], *e.forced, *e.gold] for p, c, e in rows], torch.int64),
        segments=_pad([_segments(len(p.token_ids), c.hint, e) for p, c, e in rows], torch.uint8),
        rewards=torch.tensor([v.reward for v in samples.verdicts], dtype=torch.float32),
        columns={
            "engine": _pad(
                [
                    [0.0] * len(p.token_ids) + [*c.logprobs[: e.sampled]] + [0.0] * (len(e.forced) + len(e.gold))
                    for p, c, e in rows
                ],
                torch.float32,
            )
        },
        temperature=temperature,
    )


def _segments(prompt: int, hint: int, ending: Ending) -> list[int]:
    counts = {
        Segment.PROMPT: prompt,
        Segment.HINT: min(hint, ending.sampled),
        Segment.SAMPLED: max(0, ending.sampled - hint),
        Segment.FORCED: len(ending.forced),
        Segment.GOLD: len(ending.gold),
    }
    return [int(kind) for kind, count in counts.items() for _ in range(count)]


def _pad(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """(N, L), right-padded with 0; (0, 1) without rows."""
    if not rows:
        return torch.zeros(0, 1, dtype=dtype)
    lengths = torch.tensor([len(row) for row in rows])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(inside.shape, dtype=dtype)
    padded[inside] = torch.tensor([*chain.from_iterable(rows)], dtype=dtype)
    return padded
