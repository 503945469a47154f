"""Prompts to tokens, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from ..seeding import address
from ..types import ConfigError, Prompt


def encode(prompts: Sequence[Prompt], tokenizer) -> list[Prompt]:
    """The prompts with `token_ids` set: through the chat template where there are messages, else the text itself."""
    encoded = []
    for prompt in prompts:
        if prompt.messages:
            ids = tokenizer.apply_chat_template(
                [dict(m) for m in prompt.messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = tokenizer(prompt.text).input_ids
        if not ids:
            raise ConfigError(f"prompt {prompt.id!r} has no tokens (text {prompt.text!r}); expected at least one")
        encoded.append(replace(prompt, token_ids=tuple(ids)))
    return encoded


class PromptOrder:
    """Endless passes over `count` prompts, each pass a permutation of its own; position -> (prompt, pass)."""

    def __init__(self, count: int, *where: str | int) -> None:
        self.count, self.where = count, where
        self._permutation = lru_cache(maxsize=2)(self._make_permutation)

    def __getitem__(self, position: int) -> tuple[int, int]:
        turn, place = divmod(position, self.count)
        return self._permutation(turn)[place], turn

    def _make_permutation(self, turn: int) -> list[int]:
        generator = torch.Generator().manual_seed(address(*self.where, turn))
        return torch.randperm(self.count, generator=generator).tolist()
