"""Guard: two models that read the same tokens must mean the same by them."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import ConfigError


def check_real_tokens(largest: int, size: int, reader: str) -> None:
    """
    Args:
        largest: id among the tokens that another model wrote.
        size: of the embeddings of the model that reads them, named `reader`.

    Raises:
        ConfigError: the reader has no such token: padding of the writer's vocabulary was sampled.
    """
    if largest >= size:
        raise ConfigError(
            f"token {largest} was sampled, which stands for nothing, and {reader} has only {size}; expected completions of "
            "real tokens: take models that were trained with this tokenizer"
        )


def check_same_tokens(first: Mapping[str, int], second: Mapping[str, int], names: tuple[str, str]) -> None:
    """Compares {token: id} of two tokenizers. Sizes of models are not compared: embeddings may be padded.

    Raises:
        ConfigError: they differ; the message names the token with the lowest id that does.
    """
    if first == second:
        return
    by_id = [{number: token for token, number in tokens.items()} for tokens in (first, second)]
    for number in sorted({*by_id[0], *by_id[1]}):
        mine, other = (tokens.get(number) for tokens in by_id)
        if mine != other:
            raise ConfigError(
                f"token {number} is {mine!r} for {names[0]} and {other!r} for {names[1]}; expected models with the same "
                "tokenizer: take two of one family"
            )
