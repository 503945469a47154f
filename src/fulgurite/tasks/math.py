r"""Mathematics: a question is answered by a final \boxed{...}, as in MATH, AIME, AMC, Minerva.

The answer is compared as mathematics, see `rewards.math_answer`; Math-Verify decides what that cannot.
"""

from __future__ import annotations

from ..rewards.extract import Where, final_answer
from ..types import Completion, Prompt
from .grading import GradedTask, Grader
from .prompting import PromptStyle
from .sources import Source

STYLE = PromptStyle("{question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n")


class Math(GradedTask):
    """Questions with mathematical answers.

    Rows need the columns `question` and `answer`, which is the answer alone or a solution that ends in a box.

    Args:
        splits: {split: source}.
        style: how a question becomes a prompt.
        read: where a completion must give its answer: `boxed`, only the last box; `marked`, also between answer tags or after
            `####`, `A:` and `the answer is`; `any`, also the whole of a short text and the last formula or number.
        several_answers: the column `answer` holds a list, of which one must be met.
        grader: the processes that grade.
    """

    function = "fulgurite.rewards.math_vote:judge"

    def __init__(
        self,
        splits: dict[str, Source],
        style: PromptStyle = STYLE,
        read: Where = "boxed",
        several_answers: bool = False,
        grader: Grader = Grader(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(splits, style, grader, several_answers=several_answers)
        self.read = read

    def reference(self, answer: str) -> str:
        return final_answer(answer, "boxed") or answer

    def call(self, prompt: Prompt, completion: Completion) -> list:
        return [self.golds(prompt), completion.text, self.read]
