"""Guard: two models that read the same tokens must mean the same by them."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import ConfigError


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
