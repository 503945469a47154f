"""Rows that end with the reference answer, in the place of what was sampled after the reasoning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engines.requests import tokens_until
from ..tasks.protocol import Task
from ..types import Completion, ConfigError, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ending:
    """How a row ends: the number of sampled tokens that stay, then tokens of the segments `forced` and `gold`."""

    sampled: int
    forced: tuple[int, ...] = ()
    gold: tuple[int, ...] = ()


def as_sampled(prompt: Prompt, completion: Completion) -> Ending:
    """All of the completion and no more."""
    return Ending(len(completion.token_ids))


@dataclass(frozen=True)
class GoldAnswer:
    """Puts the reference answer after the reasoning of every completion.

    The reasoning is what was sampled up to `after` and with it. A completion that was cut before got no further: `after` is
    appended to it as forced tokens, which it is not credited for. One that ended of itself without `after` gets no answer.

    Args:
        after: the text that ends the reasoning, for example `</think>`.
        text: of the gold tokens, with the reference answer in the place of `{answer}`; the end-of-sequence token follows. It is
            tokenised by itself.
    """

    after: str
    text: str = "{answer}"

    def __post_init__(self) -> None:
        if not self.after:
            raise ConfigError("gold.after is empty; expected the text that ends the reasoning, for example </think>")
        if "{answer}" not in self.text:
            raise ConfigError(f"gold.text is {self.text!r}; expected {{answer}} in it, where the reference answer goes")

    def ending(self, answer: str, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> Ending:
        """How the row of a completion ends whose prompt has this reference answer."""
        sampled, forced = tokens_until([self.after], completion.token_ids, tokenizer.decode), ()
        if sampled is None:
            sampled = len(completion.token_ids)
            if completion.finish_reason != "length":
                return Ending(sampled)
            forced = tuple(tokenizer(self.after, add_special_tokens=False).input_ids)
        gold = tokenizer(self.text.replace("{answer}", answer), add_special_tokens=False).input_ids
        return Ending(sampled, forced, (*gold, tokenizer.eos_token_id))

    def check_length(
        self, task: Task, prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, limit: int
    ) -> None:
        """
        Raises:
            ConfigError: the longest row that a prompt can get has more than `limit` tokens.
        """
        for prompt in prompts:
            longest = self.ending(task.gold(prompt), Completion((), (), "length", ""), tokenizer)
            length = len(prompt.token_ids) + max_new_tokens + len(longest.forced) + len(longest.gold)
            if length > limit:
                raise ConfigError(
                    f"the prompt {prompt.id!r} with {max_new_tokens} sampled tokens and its gold answer can have {length} "
                    f"tokens; expected at most {limit}, the model's positions: lower sampling.max_new_tokens"
                )


def check_gold(gold: GoldAnswer | None, reads: bool, of: str, task: Task, prompts: Iterable[Prompt]) -> None:
    """
    Args:
        gold: what the config asks for.
        reads: the loss of the module named `of` reads gold tokens.
        prompts: of the task, that are trained on.

    Raises:
        ConfigError: gold tokens that nothing reads, or a prompt without a reference answer.
    """
    if gold is None:
        return
    if not reads:
        raise ConfigError(
            f"data.gold is given, and {of} learns from no gold answers; set model.class_path to LatentReasoning, or leave gold "
            "out"
        )
    for prompt in prompts:
        if not task.gold(prompt):
            raise ConfigError(
                f"data.gold needs a reference answer, and {type(task).__name__} has none for the prompt {prompt.id!r}; take a "
                "task that has, or credit verdicts instead: TsallisReweighting with reward: verifier, without gold"
            )
