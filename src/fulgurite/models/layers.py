"""Parts of the models of transformers that torch's own functions compute with less work, or exactly.

Attention: over packed rows, and in decoding over keys that heads share. Norms: one function in place of seven, which a float64
model takes in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from .packing import Packing, spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "fulgurite"


class Norm(nn.RMSNorm):
    """In mixed precision, of states in the dtype of its weight where that is the finer: the heads' come as bfloat16."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__(weight.shape, eps, elementwise_affine=False)
        self.weight = weight

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.to(torch.promote_types(states.dtype, self.weight.dtype)))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; with a packing, of the states of its line, and then it reads no mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is not None:
        query, key, answers = query.to(value.dtype), key.to(value.dtype), []
        for askers, asked, mask in packing.attentions:
            rows = spread(query, askers), spread(key, asked), spread(value, asked)
            answers.append(sdpa_attention_forward(module, *rows, mask, **kwargs)[0].flatten(0, 1))
        return embedding(packing.homes, torch.cat(answers).flatten(1)).unflatten(-1, answers[0].shape[1:])[None], None
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    heads_of_a_key = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    answers = scaled_dot_product_attention(
        heads_of_a_key, key, value, attention_mask, kwargs.get("dropout", 0.0), scale=kwargs["scaling"]
    )
    return answers.flatten(1, 2)[:, None], None


def use_torch_layers(hf: PreTrainedModel) -> None:
    """Gives a model `attention` and torch's norms; its weights and their names stay."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    hf.set_attn_implementation(NAME)
    for module in list(hf.modules()):
        for name, child in module.named_children():
            if hasattr(child, "variance_epsilon"):
                setattr(module, name, Norm(child.weight, child.variance_epsilon))
