"""What a task is. Users add one here first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..types import Completion, ConfigError, Prompt, Verdict


class Task(ABC):
    """Prompts with reference answers, and the judgement of completions.

    Attributes:
        reward_names: of the rewards in its verdicts.
    """

    reward_names: tuple[str, ...] = ("accuracy",)

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split, always in the same order; `token_ids` may be empty.

        Raises:
            ConfigError: the task has no such split.
        """

    @abstractmethod
    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        """The verdict on one completion. The text is hostile: never evaluate it."""

    def judge_all(self, pairs: Sequence[tuple[Prompt, Completion]]) -> list[Verdict]:
        """The verdicts on many completions, in their order. What could hang on a text is called through a `Grader`."""
        return [self.judge(*pair) for pair in pairs]

    def gold(self, prompt: Prompt) -> str | None:
        """The reference answer as a completion would give it, without reasoning; None where there is no such text."""
        return prompt.answer

    def solution(self, prompt: Prompt) -> str:
        """A correct completion to learn from, without end-of-sequence token.

        Raises:
            ConfigError: the task has none.
        """
        raise ConfigError(f"{type(self).__name__} has no solutions to learn from; use a task that has, or learn from verdicts")


def binary_verdict(outcome: str) -> Verdict:
    """The verdict of a task with one reward, accuracy: 1 for `correct`, else 0."""
    reward = float(outcome == "correct")
    return Verdict(outcome, {"accuracy": reward}, reward)
