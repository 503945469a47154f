"""Low-rank adapters (LoRA, arXiv 2106.09685), by peft: W + alpha / rank * B A, of which only A and B are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..types import ConfigError

NAME = "default"


@dataclass(frozen=True)
class LoRA:
    """Adapters beside the linear layers of a model, which itself stays as it is.

    Args:
        rank: of the product; a layer of a inputs and b outputs gets rank * (a + b) weights.
        alpha: the product is scaled by alpha / rank.
        targets: names of the linear layers, for example `[q_proj, v_proj]`; by default all but the head.
        seed: of the random A; B begins at 0.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or self.targets == []:
            raise ConfigError(
                f"lora has rank {self.rank}, alpha {self.alpha} and targets {self.targets}; expected a rank of at least 1, an "
                "alpha above 0, and names of layers or null"
            )


def add_adapters(hf: nn.Module, lora: LoRA) -> None:
    """Freezes a model and puts adapters, in float32 at least, into it; what it computes does not change yet.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import inject_adapter_in_model

    hf.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(lora.seed)
        try:
            inject_adapter_in_model(_settings(lora), hf, NAME)
        except ValueError as error:
            linear = {name.rpartition(".")[2] for name, layer in hf.named_modules() if isinstance(layer, nn.Linear)}
            raise ConfigError(
                f"lora.targets is {lora.targets}, and the model has no such layer; expected some of {', '.join(sorted(linear))}"
            ) from error
    for name, weight in hf.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            weight.requires_grad_(True)


def merged_weights(
    weights: Iterator[tuple[str, Tensor]], hf: nn.Module, whole: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """(name in the model without adapters, weight with them) for each (name, weight) of the model's state.

    Args:
        whole: gathers a weight.
    """
    for name, weight in weights:
        if ".lora_" in name:
            continue
        owner, base, _ = name.rpartition(".base_layer.weight")
        if not base:
            yield name.replace(".base_layer.", "."), whole(weight)
            continue
        layer = hf.get_submodule(owner)
        a, b = (whole(getattr(layer, part)[NAME].weight.detach()) for part in ("lora_A", "lora_B"))
        yield f"{owner}.weight", whole(weight).to(a.dtype) + layer.scaling[NAME] * (b @ a)


def save_adapters(hf: nn.Module, lora: LoRA, base: str, folder: Path) -> None:
    """Writes adapters alone, as `peft.PeftModel.from_pretrained` reads them."""
    from safetensors.torch import save_file

    weights = {name: weight for name, weight in hf.state_dict().items() if ".lora_" in name}
    named = {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight.contiguous() for name, weight in weights.items()}
    folder.mkdir(parents=True)
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = _settings(lora)
    settings.base_model_name_or_path, settings.task_type = base, "CAUSAL_LM"
    settings.save_pretrained(folder)


def adapter_weights(model: nn.Module, lora: LoRA, head: nn.Module) -> int:
    """How many weights the adapters of a model have."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}
    chosen = [layer for name, layer in layers.items() if lora.targets is None or name.rpartition(".")[2] in lora.targets]
    return sum(lora.rank * (layer.in_features + layer.out_features) for layer in chosen)


def _settings(lora: LoRA):
    from peft import LoraConfig

    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets or "all-linear", task_type="CAUSAL_LM")
