"""Questions of data sets whose answers are graded in processes that can be killed."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..rewards.pool import GraderPool, Returned
from ..types import Completion, ConfigError, Prompt, Verdict
from .prompting import PromptStyle
from .protocol import Task, binary_verdict
from .sources import Source

ENOUGH_TO_JUDGE_THE_FUNCTION = 8


@dataclass(frozen=True)
class Grader:
    """Processes that judge hostile text, see `rewards.pool.GraderPool`; graders with equal settings share them.

    Args:
        workers: processes; a distributed run has as many on each rank.
        time_limit_s: wall-clock seconds an answer may take; then its process is killed and replaced.
        memory_limit_mib: address space of a process.
    """

    workers: int = 2
    time_limit_s: float = 5.0
    memory_limit_mib: int = 1024

    def __post_init__(self) -> None:
        if self.workers < 1 or self.time_limit_s <= 0 or self.memory_limit_mib < 256:
            raise ConfigError(
                f"a grader has workers {self.workers}, time_limit_s {self.time_limit_s:g} and memory_limit_mib "
                f"{self.memory_limit_mib}; expected at least one worker, more than 0 s, and at least 256 MiB"
            )

    def map(self, function: str, calls: Sequence[Sequence | Mapping], of: str) -> list[Returned]:
        """One result per call, in the order of the calls.

        Args:
            function: `package.module:name`; arguments and value must be JSON.
            of: what is judged, for errors.

        Raises:
            ConfigError: the processes cannot load the function, or it fails on every one of several calls.
        """
        try:
            returned = _pool(self).map(function, calls)
        except RuntimeError as error:
            raise ConfigError(f"{of} cannot be judged: {error}") from error
        if len(returned) >= ENOUGH_TO_JUDGE_THE_FUNCTION and all(one.failure for one in returned):
            raise ConfigError(
                f"{of} cannot be judged: the function fails on each of {len(returned)} completions, "
                f"first {returned[0].failure}; expected a value for nearly all: correct the function or its arguments"
            )
        return returned


@cache
def _pool(grader: Grader) -> GraderPool:
    return GraderPool(grader.workers, grader.time_limit_s, grader.memory_limit_mib)


class GradedTask(Task):
    """Questions of data sets. A subclass names the function that grades, and what it is called with.

    Rows need the columns `question`, `answer` and those of `context`. The column `solution` is read where `columns` of the
    source names it.

    Args:
        splits: {split: source}.
        style: how a question becomes a prompt.
        grader: the processes that grade.
        context: further columns that the template shows.
        several_answers: the column `answer` holds a list, of which one must be met.
    """

    function: str

    def __init__(
        self,
        splits: dict[str, Source],
        style: PromptStyle,
        grader: Grader,
        context: Sequence[str] = (),
        several_answers: bool = False,
    ) -> None:
        for name in context:
            if "{" + name + "}" not in style.template:
                raise ConfigError(f"context names the column {name!r}, and the template does not show {{{name}}}; add it there")
        self.splits, self.style, self.grader = splits, style, grader
        self.context, self.several_answers = tuple(context), several_answers

    @abstractmethod
    def call(self, prompt: Prompt, completion: Completion) -> list:
        """The arguments of `function` for a completion; it returns the outcome and the answer read, normalised."""

    def reference(self, answer: str) -> str:
        """The final answer in the column `answer`."""
        return answer

    def prompts(self, split: str) -> list[Prompt]:
        if split not in self.splits:
            raise ConfigError(f"no split {split!r}; expected one of {', '.join(self.splits)}")
        source = self.splits[split]
        solved = ("solution",) * ("solution" in source.columns)
        prompts = []
        for number, row in enumerate(source.rows(("question", "answer", *solved, *self.context))):
            prompt = self.style.prompt(
                row["question"],
                columns={name: row[name] for name in self.context},
                id=f"{split}/{number}",
                answer=row["answer"] if self.several_answers else self.reference(row["answer"]),
                source=source.path,
            )
            prompts.append(replace(prompt, metadata={**prompt.metadata, **{name: row[name] for name in solved}}))
            if not all(isinstance(gold, str) and gold.strip() for gold in self.golds(prompts[-1]) or [None]):
                raise ConfigError(
                    f"{source.path}: the answer of prompt {prompt.id!r} is {prompt.answer[:80]!r}; expected "
                    + ("a list of texts, none of them empty" if self.several_answers else "a text that is not empty")
                    + ". Correct the row, or set incomplete: drop in its source"
                )
        return prompts

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        return self.judge_all([(prompt, completion)])[0]

    def judge_all(self, pairs: Sequence[tuple[Prompt, Completion]]) -> list[Verdict]:
        returned = self.grader.map(self.function, [self.call(*pair) for pair in pairs], type(self).__name__)
        verdicts = []
        for one in returned:
            outcome, answer = ("ungradable", "") if one.failure else one.value[:2]
            verdicts.append(replace(binary_verdict(outcome), answer=answer or None, failure=one.failure))
        return verdicts

    def golds(self, prompt: Prompt) -> list[str]:
        """The answers of which one must be met; none where the column holds no list of them."""
        if not self.several_answers:
            return [prompt.answer]
        try:
            listed = json.loads(prompt.answer)
        except ValueError:
            return []
        return listed if isinstance(listed, list) else []

    def gold(self, prompt: Prompt) -> str:
        return self.golds(prompt)[0]

    def solution(self, prompt: Prompt) -> str:
        if "solution" not in prompt.metadata:
            raise ConfigError(
                f"the prompt {prompt.id!r} of {prompt.source} has no solution to learn from; "
                "name the column that has it: `columns: {solution: NAME}`"
            )
        return prompt.metadata["solution"]
