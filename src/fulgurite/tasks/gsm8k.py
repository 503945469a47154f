"""GSM8K (arXiv 2110.14168): word problems of primary school, answered by a number after `####`."""

from __future__ import annotations

import re
from dataclasses import replace

from ..rewards.extract import Where
from ..types import Completion, Prompt
from .grading import GradedTask, Grader
from .prompting import PromptStyle
from .sources import Source

MARKER = "####"
HUB = {split: Source("openai/gsm8k", name="main", split=split) for split in ("train", "test")}
STYLE = PromptStyle("{question}\nReason step by step. End with #### and the answer, a number.\n")


class GSM8K(GradedTask):
    """Word problems with a number as answer.

    Rows need the columns `question` and `answer`, which is the solution with `####` before the number, or the number alone.

    Args:
        splits: {split: source}; by default the data set of the hub, splits `train` and `test`.
        style: how a question becomes a prompt.
        read: where a completion must give its answer: `marked`, after `####`, in a box, between answer tags, after `A:` or
            `the answer is`; `boxed`, only the last box; `any`, also the whole of a short text and the last number.
        grader: the processes that grade.
    """

    function = "fulgurite.rewards.math_vote:judge"

    def __init__(
        self,
        splits: dict[str, Source] | None = None,
        style: PromptStyle = STYLE,
        read: Where = "marked",
        grader: Grader = Grader(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(HUB if splits is None else splits, style, grader)
        self.read = read

    def prompts(self, split: str) -> list[Prompt]:
        """Where no column has the solution, it stands before the marker in the answer."""
        return [
            prompt if not solved else replace(prompt, answer=answer.strip(), metadata={"solution": solved, **prompt.metadata})
            for prompt in super().prompts(split)
            for solved, _, answer in [prompt.answer.rpartition(MARKER)]
        ]

    def call(self, prompt: Prompt, completion: Completion) -> list:
        return [self.golds(prompt), completion.text, self.read]

    def solution(self, prompt: Prompt) -> str:
        """Without the data set's marks for a calculator, `<<48/2=24>>`."""
        reasoning = re.sub(r"<<[^<>]*>>", "", super().solution(prompt)).rpartition(MARKER)
        return f"{(reasoning[0] or reasoning[2]).strip()}\n{MARKER} {prompt.answer}"
