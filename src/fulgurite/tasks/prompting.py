"""How a question becomes a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..types import ConfigError, Prompt


@dataclass(frozen=True)
class PromptStyle:
    """What stands around a question.

    Args:
        template: of the text that the model gets; `{question}` and the names of further columns that the task reads are filled
            in, other braces stay.
        chat: send the text as a user message through the tokenizer's chat template, instead of as it is.
        system: a system message; only with `chat`.
        thinking: switch the chat template's thinking on or off; by default as the template has it. Only with `chat`.
    """

    template: str = "{question}"
    chat: bool = False
    system: str | None = None
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError(f"template is {self.template!r}; expected it to contain {{question}}")
        for name in ("system", "thinking"):
            if getattr(self, name) is not None and not self.chat:
                raise ConfigError(
                    f"{name} is given but chat is false, so nothing would use it; set chat: true, or leave it out"
                )

    def prompt(self, question: str, columns: Mapping[str, str] = MappingProxyType({}), **fields: Any) -> Prompt:
        """The prompt of a question, which also stands alone in `metadata`; `columns` are further texts for the template, by
        name, and `fields` further fields of `Prompt`."""
        known = {**columns, "question": question}
        text = re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), self.template)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return Prompt(
            text=text,
            messages=(*system, {"role": "user", "content": text}) if self.chat else (),
            thinking=self.thinking,
            metadata={"question": question},
            **fields,
        )
