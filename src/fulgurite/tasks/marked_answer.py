"""Free text whose final answer stands after a marker, as in GSM8K: `... #### 72`."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, InvalidOperation

from ..types import Completion, ConfigError, Prompt, Verdict
from .prompting import PromptStyle
from .protocol import Task, binary_verdict
from .sources import Source


class MarkedAnswer(Task):
    """Questions of data sets; a completion is judged by what follows its last marker.

    Args:
        splits: {split: source}; rows need the columns `question` and `answer`. The answer is the text after the last marker,
            or all of it where it has none.
        style: how a question becomes a prompt; `{marker}` in its template is filled in.
        marker: stands before the final answer.
    """

    def __init__(
        self,
        splits: dict[str, Source],
        style: PromptStyle = PromptStyle("{question}\nEnd with {marker} and the answer.\n"),  # noqa: B008 - frozen
        marker: str = "####",
    ) -> None:
        self.splits, self.marker = splits, marker
        self.style = replace(style, template=style.template.replace("{marker}", marker))

    def prompts(self, split: str) -> list[Prompt]:
        if split not in self.splits:
            raise ConfigError(f"no split {split!r}; expected one of {', '.join(self.splits)}")
        source = self.splits[split]
        return [
            self.style.prompt(
                row["question"],
                id=f"{split}/{number}",
                answer=row["answer"].rpartition(self.marker)[2].strip(),
                source=source.path,
            )
            for number, row in enumerate(source.rows(("question", "answer")))
        ]

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        if self.marker not in completion.text:
            return binary_verdict("ungradable")
        given = normalise(completion.text.rpartition(self.marker)[2])
        return replace(binary_verdict("correct" if given == normalise(prompt.answer or "") else "wrong"), answer=given)


def normalise(answer: str) -> str:
    """Spaces, thousands commas, currency signs and a final full stop removed; a number in its shortest form."""
    text = answer.strip().rstrip(".").replace(",", "").replace("$", "").strip()
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return format(number.normalize(), "f") if number.is_finite() and abs(number.adjusted()) < 50 else text
