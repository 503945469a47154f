"""What every engine can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..types import Completion, Prompt, SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.causal_lm import CausalLM


class Engine(ABC):
    """Draws completions with the weights it was last given.

    A completion is a function of the weights, the prompt and an address: (spec.seed, prompt.id, prompt.draw, sample
    index). It depends neither on the other prompts of the call nor on their order. `generate` runs no collective: ranks
    may ask for different numbers of completions.

    Attributes:
        version: of the weights held, as passed to `load_weights`; None before that.
    """

    version: int | None = None

    @abstractmethod
    def bind(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Says whose completions are drawn; called once, before anything else."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes over the weights that `CausalLM.named_full_weights` streams; called on every rank."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        """`spec.n` completions of each prompt, those of the first prompt first.

        The log-probabilities returned are those of the model at `spec.scoring_temperature`, before top-k and top-p cut
        the distribution: what `CausalLM.score` computes.

        Raises:
            ConfigError: a prompt and `spec.max_new_tokens` do not fit into the model's context.
            ValueError: a prompt has no tokens.
        """
