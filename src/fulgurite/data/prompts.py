"""Prompts to tokens, what identifies them, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from ..seeding import address
from ..tasks.sources import fingerprint
from ..types import ConfigError, Prompt

READ_BY_A_RUN = ("id", "text", "messages", "thinking", "answer", "metadata")


def encode(prompts: Sequence[Prompt], tokenizer) -> list[Prompt]:
    """The prompts with `token_ids` set: through the chat template where there are messages, else the text itself.

    Raises:
        ConfigError: a prompt has no tokens, or two beginning-of-sequence tokens; the chat template is missing, refuses a prompt
            or has no switch for thinking.
    """
    encoded = []
    for prompt in prompts:
        ids = _through_template(prompt, tokenizer) if prompt.messages else tokenizer(prompt.text).input_ids
        if not ids:
            raise ConfigError(f"prompt {prompt.id!r} has no tokens (text {prompt.text!r}); expected at least one")
        if tokenizer.bos_token_id is not None and list(ids[:2]) == [tokenizer.bos_token_id] * 2:
            raise ConfigError(
                f"prompt {prompt.id!r} begins with two {tokenizer.bos_token} tokens; expected one, which the tokenizer or its "
                "chat template adds: take it out of the prompt's text"
            )
        encoded.append(replace(prompt, token_ids=tuple(ids)))
    return encoded


def _through_template(prompt: Prompt, tokenizer) -> list[int]:
    from jinja2 import TemplateError

    model = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise ConfigError(
            f"prompt {prompt.id!r} has messages, and the tokenizer of {model} has no chat template; "
            "set chat: false, or take a model with a chat template"
        )
    switch = {}
    if prompt.thinking is not None:
        if "enable_thinking" not in tokenizer.get_chat_template():
            raise ConfigError(
                f"thinking is {prompt.thinking}, and the chat template of {model} has no thinking switch; leave it out"
            )
        switch = {"enable_thinking": prompt.thinking}
    try:
        return tokenizer.apply_chat_template(
            [dict(m) for m in prompt.messages], add_generation_prompt=True, tokenize=True, return_dict=False, **switch
        )
    except TemplateError as error:
        raise ConfigError(f"the chat template of {model} refuses prompt {prompt.id!r}: {error}; change its messages") from error


def within_limit(
    prompts: Sequence[Prompt], max_prompt_tokens: int | None, of: str, advice: str, drop: bool = False
) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens: all of them, unless `drop`.

    Raises:
        ConfigError: one is longer, and not to be dropped; or none is left.
    """
    short = [p for p in prompts if max_prompt_tokens is None or len(p.token_ids) <= max_prompt_tokens]
    if len(short) < len(prompts) and not (drop and short):
        longest = max(prompts, key=lambda p: len(p.token_ids))
        raise ConfigError(
            f"{len(prompts) - len(short)} of {len(prompts)} prompts of {of} are too long: {longest.id!r} has "
            f"{len(longest.token_ids)} tokens; expected at most max_prompt_tokens {max_prompt_tokens}: {advice}"
        )
    return short


def identity(split: str, prompts: Sequence[Prompt]) -> dict[str, str | int]:
    """Name of a split, number of its prompts, fingerprint of what a run reads of them; the file they come from is left out."""
    digest = fingerprint({name: getattr(prompt, name) for name in READ_BY_A_RUN} for prompt in prompts)
    return {"split": split, "prompts": len(prompts), "sha256": digest}


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
