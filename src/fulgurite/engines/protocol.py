"""What every engine can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..types import Completion, Prompt, SamplingSpec
from .weights import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.causal_lm import CausalLM


class EngineError(RuntimeError):
    """An engine that cannot go on. The message says what happened and what to do; the run goes on from its last checkpoint."""


class Engine(ABC):
    """Draws completions with the weights it was last given.

    A completion is a function of the weights, the prompt and an address: (spec.seed, prompt.id, prompt.draw, sample
    index). It depends neither on the other prompts of the call nor on their order. `generate` runs no collective: ranks
    may ask for different numbers of completions.

    Attributes:
        version: of the weights held, as passed to `load_weights`; None where there are none, before the first load and
            after `sleep`.
        copies: the engine holds weights of its own, which a load must bring up to date; False where it decodes with the
            tensors of the bound model themselves.
        dtype: of the weights it holds; streamed weights are cast to it.
        limit: longest prompt and completion together, in tokens.
        replicas: copies of the weights behind it; that many equal requests in one call reach each of them.
        draws_checked: its draws were once compared with the trainer's distribution; set by the DataModule.
    """

    version: int | None = None
    copies: bool = True
    dtype: torch.dtype
    limit: int
    replicas: int = 1
    draws_checked: bool = False

    @abstractmethod
    def bind(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Says whose completions are drawn; called once for a model, on every rank, before anything else."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes over the weights that `CausalLM.named_full_weights` streams and forgets whatever it remembered of older
        ones; called on every rank."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Checksums of the tensors it holds, as far as they can be read."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        """`spec.n` completions of each prompt, those of the first prompt first.

        The log-probabilities returned are those of the distribution that the tokens were drawn from: at
        `spec.scoring_temperature`, renormalised over what top-k and top-p left. Without a cut that is what
        `CausalLM.score` computes; greedy tokens have those of temperature 1.

        Raises:
            ConfigError: a prompt and `spec.max_new_tokens` do not fit into the model's context.
            ValueError: a prompt has no tokens.
        """

    def sleep(self) -> None:  # noqa: B027 - most engines have nothing to give back
        """Gives memory back until the next `load_weights`, where the engine can; nothing else may be asked meanwhile."""
