"""Tiny models with random weights and their byte-level tokenizers, made from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..types import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SPECIALS = ("<pad>", "<eos>", "<unk>")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class TinyModel:
    """A tiny model with random weights, made from these numbers without a download; the same weights every time.

    Args:
        architecture: whose layers it has.
        hidden_size, intermediate_size, layers, heads, kv_heads: its shape.
        head_dim: width of a head; by default hidden_size / heads. vLLM reads it for `qwen3` and `llama` only.
        alphabet: the characters its tokenizer knows; None for every byte.
        max_positions: longest row in tokens.
        seed: of the weights.
    """

    architecture: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 3
    kv_heads: int = 3
    head_dim: int | None = None
    alphabet: str | None = None
    max_positions: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % (2 * self.heads):
            raise ConfigError(f"hidden_size is {self.hidden_size}; expected a multiple of 2 * heads = {2 * self.heads}")
        if self.head_dim is not None and (self.head_dim < 2 or self.head_dim % 2):
            raise ConfigError(f"head_dim is {self.head_dim}; expected an even number, or null for hidden_size / heads")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads is {self.heads}; expected a multiple of kv_heads = {self.kv_heads}")
        if self.alphabet == "":
            raise ConfigError("alphabet is empty; expected the characters of the task, or null for every byte")


def _symbols(alphabet: str | None) -> list[str]:
    """The byte-level spelling of every byte of the alphabet."""
    from tokenizers.pre_tokenizers import ByteLevel

    if alphabet is None:
        return sorted(ByteLevel.alphabet())
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(alphabet)
    return sorted({symbol for piece, _ in pieces for symbol in piece})


def tiny_config(tiny: TinyModel) -> PreTrainedConfig:
    from transformers import AutoConfig

    symbols = len(SPECIALS) + len(_symbols(tiny.alphabet))
    return AutoConfig.for_model(
        tiny.architecture,
        vocab_size=-(-symbols // 64) * 64,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        head_dim=tiny.head_dim or tiny.hidden_size // tiny.heads,
        max_position_embeddings=tiny.max_positions,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index("<pad>"),
        eos_token_id=SPECIALS.index("<eos>"),
        bos_token_id=None,
    )


def tiny_tokenizer(tiny: TinyModel) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIALS, *_symbols(tiny.alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=tiny.max_positions,
    )
