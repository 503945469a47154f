"""Memory that a token of a micro-batch costs in bf16-mixed: what its forward pass keeps for the backward pass.

    python tools/activation_memory.py [SHAPE...]

Counted on a CPU with saved-tensor hooks, on one and on two layers of a shape: the difference is a layer. Weights and
their bfloat16 copies are left out. The attention kernel of a GPU may keep somewhat more or less.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fulgurite.models.causal_lm import CausalLM

SHAPES = {  # Qwen2.5: hidden, intermediate, heads, key-value heads, layers
    "0.5B": (896, 4864, 14, 2, 24),
    "1.5B": (1536, 8960, 12, 2, 28),
    "3B": (2048, 11008, 16, 2, 36),
    "7B": (3584, 18944, 28, 4, 28),
    "14B": (5120, 13824, 40, 8, 48),
}
TOKENS = 250  # no side of a weight


def kept_bytes(hidden: int, intermediate: int, heads: int, kv_heads: int, layers: int) -> int:
    """By activations of one row; a tensor without a side of the row's length is a weight."""
    config = AutoConfig.for_model(
        "qwen2", vocab_size=1024, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True,
    )  # fmt: skip
    model = CausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if TOKENS in tensor.shape:
            storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other tensor gets its place
        return tensor

    rows = torch.zeros(1, TOKENS + 1, dtype=torch.int64)
    scored = torch.arange(TOKENS + 1)[None] > 0
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        logprobs = model.score(rows, scored).logprobs
    assert logprobs.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def megabytes_per_token(shape: str) -> float:
    """Of all layers, in units of 10^6 bytes."""
    *sizes, layers = SHAPES[shape]
    return (kept_bytes(*sizes, 2) - kept_bytes(*sizes, 1)) * layers / TOKENS / 1e6


if __name__ == "__main__":
    for shape in sys.argv[1:] or SHAPES:
        print(f"{shape:>5}  {megabytes_per_token(shape):5.2f} MB per token")
