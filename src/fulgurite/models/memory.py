"""How many bytes a model and what is computed with it take, from its config alone.

Letters: W weights, L layers, H hidden units, I intermediate units, A heads, K key-value heads times their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .adapters import LoRA, adapter_weights
from .scoring import LOGITS_BYTES
from .sources import load_config
from .tiny import TinyModel

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class ModelSize:
    """Counts of a model: weights (a tied head once), those of its largest decoder layer and those outside the layers."""

    weights: int
    layer: int
    outside: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_width: int

    def activations_per_token(self, mixed: bool, checkpointing: bool) -> int:
        """Bytes that a token of a micro-batch keeps for the backward pass.

        For a layer like Qwen2's in bf16-mixed they are 30 H + 8 I + 4 K + 4 A + 8, as counted by `tools/activation_memory.py`;
        in float32 twice as many are taken. With activation checkpointing a layer keeps its input in float32, and one is whole.
        """
        layer = 30 * self.hidden + 8 * self.intermediate + 4 * self.kv_width + 4 * self.heads + 8
        layer = layer if mixed else 2 * layer
        return self.layers * FLOAT32 * self.hidden + layer if checkpointing else self.layers * layer

    def kv_cache_per_token(self, width: int) -> int:
        """Bytes of the key-value cache for a token, of numbers of `width` bytes."""
        return 2 * self.layers * self.kv_width * width


def logits_bytes(on_gpu: bool) -> int:
    """Of the scorer's chunk of logits, their exponentials, and what they are computed from."""
    return 3 * LOGITS_BYTES["cuda" if on_gpu else "cpu"]


def trained_weights(source: str | TinyModel, lora: LoRA | None) -> int:
    """Weights that are trained: all, or those of the adapters.

    Raises:
        ConfigError: no config of that name can be loaded.
    """
    if lora is None:
        return size_of(source).weights
    hf = _without_memory(source)
    return adapter_weights(hf, lora, hf.get_output_embeddings())


@cache
def size_of(source: str | TinyModel) -> ModelSize:
    """
    Raises:
        ConfigError: no config of that name can be loaded.
    """
    hf = _without_memory(source)
    config = hf.config
    weights = sum(p.numel() for p in hf.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in hf.get_decoder().layers]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return ModelSize(
        weights=weights,
        layer=max(layers),
        outside=weights - sum(layers),
        layers=len(layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_width=kv_heads * head_dim,
    )


def _without_memory(source: str | TinyModel):
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(source))
