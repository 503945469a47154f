"""Free text whose final answer stands after a marker, as in GSM8K: `... #### 72`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from ..types import Completion, ConfigError, Prompt, Verdict
from .protocol import Task, binary_verdict
from .sources import JsonlSource


class MarkedAnswer(Task):
    """Questions of JSONL files; a completion is judged by what follows its last marker.

    Args:
        splits: {split: source}; rows need the columns `question` and `answer`. The answer is the text after the last marker,
            or all of it where it has none.
        template: of the prompt; `{question}` and `{marker}` are filled in.
        marker: stands before the final answer.
        system: a system message; given or empty, `chat` decides whether messages are used.
        chat: send the prompt as a user message through the tokenizer's chat template.
    """

    def __init__(
        self,
        splits: dict[str, JsonlSource],
        template: str = "{question}\nEnd with {marker} and the answer.\n",
        marker: str = "####",
        system: str = "",
        chat: bool = False,
    ) -> None:
        if "{question}" not in template:
            raise ConfigError(f"template is {template!r}; expected it to contain {{question}}")
        if system and not chat:
            raise ConfigError(
                "system is given but chat is false, so nothing would send it; set chat: true, or leave system out"
            )
        self.splits, self.template, self.marker, self.system, self.chat = splits, template, marker, system, chat

    def prompts(self, split: str) -> list[Prompt]:
        if split not in self.splits:
            raise ConfigError(f"no split {split!r}; expected one of {', '.join(self.splits)}")
        rows = self.splits[split].rows(("question", "answer"))
        return [self._prompt(split, number, row) for number, row in enumerate(rows)]

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        if self.marker not in completion.text:
            return binary_verdict("ungradable")
        given = completion.text.rpartition(self.marker)[2]
        return binary_verdict("correct" if normalise(given) == normalise(prompt.answer or "") else "wrong")

    def _prompt(self, split: str, number: int, row: dict[str, str]) -> Prompt:
        text = self.template.replace("{marker}", self.marker).replace("{question}", row["question"])
        messages = [{"role": "system", "content": self.system}] * bool(self.system) + [{"role": "user", "content": text}]
        return Prompt(
            id=f"{split}/{number}",
            text=text,
            messages=tuple(messages) if self.chat else (),
            answer=row["answer"].rpartition(self.marker)[2].strip(),
            source=self.splits[split].path,
        )


def normalise(answer: str) -> str:
    """Spaces, thousands commas, currency signs and a final full stop removed; a number in its shortest form."""
    text = answer.strip().rstrip(".").replace(",", "").replace("$", "").strip()
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return format(number.normalize(), "f") if number.is_finite() and abs(number.adjusted()) < 50 else text
