"""Short answers to questions on a text: numbers as in FinQA, ConvFinQA and TAT-QA, words as in HotPotQA and MuSiQue."""

from __future__ import annotations

from ..rewards.extract import Where
from ..rewards.qa_match import Match
from ..types import Completion, ConfigError, Prompt
from .grading import GradedTask, Grader
from .prompting import PromptStyle
from .sources import Source

STYLE = PromptStyle("{question}\nReason step by step. End with: The answer is ...\n")


class QA(GradedTask):
    """Questions with a number or a few words as answer.

    Rows need the columns `question`, `answer` and those of `context`.

    Args:
        splits: {split: source}.
        style: how a question becomes a prompt; its template also shows the columns of `context`.
        context: columns that the question is about, such as `[text, table]`.
        match: `numeric`: a number within the tolerance, where a percent sign or a word like million may be missing on one side;
            a gold that is no number is matched as `exact`: equal without case, punctuation and articles. `contains`: the gold
            stands in the answer.
        relative_tolerance: of `numeric`; two whole numbers must be equal.
        read: where a completion must give its answer: `marked`, after `The answer is`, `A:` or `####`, between answer tags or
            in a box; `boxed`, only the last box; `any`, also the whole of a short text and the last number.
        several_answers: the column `answer` holds a list, of which one must be met.
        grader: the processes that grade.
    """

    function = "fulgurite.rewards.qa_match:grade"

    def __init__(
        self,
        splits: dict[str, Source],
        style: PromptStyle = STYLE,
        context: list[str] = [],  # noqa: B006 - never changed
        match: Match = "numeric",
        relative_tolerance: float = 0.001,
        read: Where = "marked",
        several_answers: bool = False,
        grader: Grader = Grader(),  # noqa: B008 - frozen
    ) -> None:
        if not 0 <= relative_tolerance < 1:
            raise ConfigError(f"relative_tolerance is {relative_tolerance}; expected 0 or more and less than 1")
        super().__init__(splits, style, grader, context, several_answers)
        self.match, self.relative_tolerance, self.read = match, relative_tolerance, read

    def call(self, prompt: Prompt, completion: Completion) -> list:
        return [self.golds(prompt), completion.text, self.match, self.read, self.relative_tolerance]
