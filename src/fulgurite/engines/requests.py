"""What every engine does with prompts before and with tokens after it decodes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from ..seeding import address
from ..types import ConfigError, Prompt, SamplingSpec


def check_requests(prompts: Sequence[Prompt], spec: SamplingSpec, limit: int) -> None:
    """Refuses prompts that cannot be continued.

    Raises:
        ConfigError: a prompt and `spec.max_new_tokens` are together longer than `limit` tokens.
        ValueError: a prompt has no tokens.
    """
    for prompt in prompts:
        length = len(prompt.token_ids)
        if not length:
            raise ValueError(f"prompt {prompt.id!r} has no tokens; expected token_ids filled by the tokenizer")
        if length + spec.max_new_tokens > limit:
            raise ConfigError(
                f"prompt {prompt.id!r} has {length} tokens and sampling.max_new_tokens is {spec.max_new_tokens}; "
                f"expected a sum of at most {limit}, the engine's positions: lower it or drop long prompts"
            )


def end_tokens(*sources) -> list[int]:
    """Every end-of-sequence id that a generation config, a config or a tokenizer names."""
    named = [getattr(source, "eos_token_id", None) for source in sources]
    return sorted({i for ids in named if ids is not None for i in (ids if isinstance(ids, list) else [ids])})


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text in it."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def tokens_until(texts: Sequence[str], tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int | None:
    """The fewest tokens whose text has one of `texts` in it; None if all of them have none."""

    def reached(count: int) -> bool:
        decoded = decode(tokens[:count])
        return any(text in decoded for text in texts)

    return 1 + bisect_left(range(1, len(tokens)), True, key=reached) if reached(len(tokens)) else None


def request_seed(prompt: Prompt, spec: SamplingSpec) -> int:
    """The seed of a prompt's first completion; vLLM adds the sample index to it, so there is room below 2^63."""
    return address(spec.seed, prompt.id, prompt.draw) >> 1


def check_temperature(spec: SamplingSpec) -> None:
    """Refuses temperatures that vLLM refuses or quietly raises.

    Raises:
        ConfigError: above 2, or above 0 and below 0.01.
    """
    if spec.temperature > 2 or 0 < spec.temperature < 0.01:
        raise ConfigError(f"sampling.temperature is {spec.temperature}; vLLM takes 0 (greedy) or 0.01 to 2")
