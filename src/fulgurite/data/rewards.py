"""Further rewards beside those of the task, and the weights of all of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any

from ..rewards.pool import Returned
from ..tasks.grading import Grader
from ..types import Completion, ConfigError, Prompt, Verdict

FACTS = {
    "text": lambda prompt, completion, verdict: completion.text,
    "tokens": lambda prompt, completion, verdict: len(completion.token_ids),
    "finish_reason": lambda prompt, completion, verdict: completion.finish_reason,
    "prompt": lambda prompt, completion, verdict: prompt.text,
    "answer": lambda prompt, completion, verdict: prompt.answer,
    "metadata": lambda prompt, completion, verdict: dict(prompt.metadata),
    "extracted": lambda prompt, completion, verdict: verdict.answer,
    "outcome": lambda prompt, completion, verdict: verdict.outcome,
}
"""What a reward function may ask for by the names of its arguments."""


@dataclass(frozen=True)
class Reward:
    """One of the named rewards whose weighted sum is the reward of a completion.

    Args:
        weight: in the sum.
        function: dotted path of a plain function that returns a number, for example `fulgurite.rewards.shaping.soft_overlong`.
            Its arguments are facts of the completion by name (`text`, `tokens`, `finish_reason`, `prompt`, `answer`,
            `metadata`, `extracted`, `outcome`) and those in `arguments`. It runs in a process that can be killed, since the
            text is hostile, and can write no file and open no connection there. null: a reward of the task itself.
        arguments: of the function, by name.
    """

    weight: float = 1.0
    function: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.function is None:
            if self.arguments:
                raise ConfigError(f"a reward has arguments {self.arguments} and no function; expected both or neither")
            return
        try:
            known = self._parameters()
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ConfigError(
                f"no reward function at {self.function}: {error}; expected package.module.name of a plain function. "
                "Python looks where PYTHONPATH says; PYTHONPATH=. is this folder"
            ) from error
        if strange := sorted(self.arguments.keys() - known.keys()):
            raise ConfigError(f"{self.function} has no argument {strange[0]!r}; it has {', '.join(known)}")
        for name, parameter in known.items():
            if name not in FACTS and name not in self.arguments and parameter.default is inspect.Parameter.empty:
                raise ConfigError(
                    f"{self.function} needs the argument {name!r}; set it in `arguments`, or name a fact of the completion: "
                    f"{', '.join(FACTS)}"
                )

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(resolve_name(self.function)).parameters

    def values(self, facts: Sequence[tuple[Prompt, Completion, Verdict]], grader: Grader, name: str) -> list[Returned]:
        """What the function returns for each completion; anything but a finite number is a failure."""
        asked = [fact for fact in self._parameters() if fact in FACTS and fact not in self.arguments]
        calls = [{**self.arguments, **{fact: FACTS[fact](*of) for fact in asked}} for of in facts]
        module, _, function = self.function.rpartition(".")
        returned = grader.map(f"{module}:{function}", calls, f"the reward {name!r}")
        return [one if one.failure or _is_finite(one.value) else Returned(failure=_not_a_number(one.value)) for one in returned]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _not_a_number(value: Any) -> str:
    return f"it returned {str(value)[:100]!r}; expected a finite number"


def check_rewards(rewards: Mapping[str, Reward], own: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a reward without a function is none of the task's own, or one with a function has the name of one.
    """
    for name, reward in rewards.items():
        if reward.function is None and name not in own:
            raise ConfigError(f"rewards has {name!r} without a function, and the task's own are {', '.join(own)}; give it one")
        if reward.function is not None and name in own:
            raise ConfigError(f"rewards has a function for {name!r}, which is a reward of the task itself; choose another name")


def add_rewards(
    pairs: Sequence[tuple[Prompt, Completion]], verdicts: Sequence[Verdict], rewards: Mapping[str, Reward], grader: Grader
) -> list[Verdict]:
    """The verdicts with the further rewards, and with the weighted sum: what the task itself gave, changed by what is named.

    A completion on which a function fails is ungradable; it gets the lowest value of that reward in this call, and at most
    0, so that breaking a penalty is never worth while.

    Raises:
        ConfigError: a function cannot be loaded where it runs, or fails on every one of several completions.
    """
    named, failures = [dict(verdict.rewards) for verdict in verdicts], [verdict.failure for verdict in verdicts]
    for name, reward in rewards.items():
        if reward.function is None:
            continue
        facts = [(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
        returned = reward.values(facts, grader, name)
        lowest = min([0.0, *(one.value for one in returned if not one.failure)])
        for i, one in enumerate(returned):
            named[i][name] = lowest if one.failure else one.value
            failures[i] = failures[i] or (one.failure and f"{name}: {one.failure}")
    changes = {name: reward.weight - (reward.function is None) for name, reward in rewards.items()}
    return [
        replace(
            verdict,
            outcome="ungradable" if failure else verdict.outcome,
            rewards=values,
            reward=verdict.reward + sum(change * values.get(name, 0.0) for name, change in changes.items()),
            failure=failure,
        )
        for verdict, values, failure in zip(verdicts, named, failures, strict=True)
    ]
