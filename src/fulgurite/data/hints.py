"""Completions that another model of the module begins and the sampled one goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..engines.requests import cut
from ..types import Completion, ConfigError, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Hints:
    """The first tokens of each completion of the first rounds, segment `hint`.

    Args:
        tokens: of a hint; one that ends the completion is the whole completion.
        rounds: how many rounds have hints, from the first on.
    """

    tokens: int = 50
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.rounds < 1:
            raise ConfigError(f"hints has tokens {self.tokens} and rounds {self.rounds}; expected at least 1 of both, or null")


def begun(prompt: Prompt, hint: Completion, index: int) -> Prompt:
    """The prompt with its hint, under an address of its own."""
    return replace(prompt, id=f"{prompt.id} hint {index}", token_ids=prompt.token_ids + hint.token_ids)


def whole(hint: Completion, rest: Completion | None, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Completion:
    """Hint and what was sampled after it, None where nothing was, as one completion."""
    if rest is None:
        return replace(hint, hint=len(hint.token_ids))
    tokens = hint.token_ids + rest.token_ids
    text = cut(tokenizer.decode(tokens, skip_special_tokens=True), stop)
    return Completion(tokens, hint.logprobs + rest.logprobs, rest.finish_reason, text, len(hint.token_ids))
