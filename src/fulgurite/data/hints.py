"""Completions that another model of the module begins and the sampled one goes on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..engines.requests import cut, tokens_until
from ..guards.vocabulary import check_real_tokens
from ..seeding import address
from ..types import Completion, ConfigError, Prompt, SamplingSpec

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

    def complete(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        write: Callable[[Sequence[Prompt], SamplingSpec], list[Completion]],
        go_on: Callable[[Sequence[Prompt], SamplingSpec], list[Completion]],
        tokenizer: PreTrainedTokenizerBase,
        known: int,
    ) -> list[Completion]:
        """`spec.n` completions of each prompt, prompt by prompt; `write` draws their hints and `go_on` the rest, each row under
        an address of its own. `known` is the number of tokens of the model that goes on."""
        hints = write(prompts, replace(spec, max_new_tokens=self.tokens, seed=address(spec.seed, "hint")))
        check_real_tokens(max(token for hint in hints for token in hint.token_ids), known, "the model that goes on")
        rows = zip((prompt for prompt in prompts for _ in range(spec.n)), hints, strict=True)
        begun = {
            i: replace(prompt, id=f"{prompt.id} hint {i % spec.n}", token_ids=prompt.token_ids + hint.token_ids)
            for i, (prompt, hint) in enumerate(rows)
            if hint.finish_reason == "length"
        }
        rest = replace(spec, n=1, max_new_tokens=spec.max_new_tokens - self.tokens)
        rests = dict(zip(begun, go_on(list(begun.values()), rest) if begun else [], strict=True))
        return [whole(hint, rests.get(i), tokenizer, spec.stop) for i, hint in enumerate(hints)]


def whole(hint: Completion, rest: Completion | None, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Completion:
    """Hint and what was sampled after it, None where nothing was, as one completion; a stop text that begins in the hint ends
    it, too."""
    if rest is None:
        return replace(hint, hint=len(hint.token_ids))

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    tokens, logprobs = hint.token_ids + rest.token_ids, hint.logprobs + rest.logprobs
    end = tokens_until(stop, tokens, decode)
    reason = rest.finish_reason if end is None else "stop"
    return Completion(tokens[:end], logprobs[:end], reason, cut(decode(tokens), stop), len(hint.token_ids))
