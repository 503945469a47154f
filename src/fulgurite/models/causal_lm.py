"""A causal language model: loaded or made tiny at random, scored through one method, sharded, streamed and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ..types import ConfigError
from .adapters import LoRA, add_adapters, merged_weights
from .layers import NAME, use_torch_layers
from .packing import pack
from .saved_weights import SavedWeights
from .scoring import Compare, Scores, compare_distributions, head_logits, token_logprobs
from .sources import found, load_config, named_in_errors
from .tiny import TinyModel, tiny_config

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKABLE = ("llama", "qwen2", "qwen3")
"""Architectures whose tokens see each other through full attention alone, at the positions that they are told."""
RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class CausalLM(nn.Module):
    """A language model `hf` of transformers, with the entry points that training needs.

    Every pass over tokens goes through `score` or `hidden`. Rows are right-padded, so causal attention needs no mask;
    an entry at position t belongs to token t, whose distribution comes from the hidden state at t - 1. Where it is less
    work, what rows have in common before their first scored token is computed once.

    Raises:
        ConfigError: the model's head has a bias or rescales its logits, which the scorer would leave out.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        self.hf = hf
        self.is_sharded = False
        rescaled = [name for name in RESCALED_LOGITS if getattr(hf.config, name, None) not in (None, 1)]
        if rescaled or hf.get_output_embeddings().bias is not None:
            raise ConfigError(
                f"the head of {type(hf).__name__} has {' and '.join(rescaled) or 'a bias'}; "
                "expected a plain linear head without bias: choose another model"
            )
        if self.packs:
            use_torch_layers(hf)

    @classmethod
    def load(cls, source: str | TinyModel, dtype: torch.dtype = torch.float32) -> CausalLM:
        """A model from a folder or hub name (safetensors only, no remote code), or a tiny random one, on the CPU.

        Raises:
            ConfigError: no model of that name can be loaded, or one without safetensors.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            if isinstance(source, TinyModel):
                torch.default_generator.manual_seed(source.seed)
                return cls(AutoModelForCausalLM.from_config(tiny_config(source), dtype=torch.float32).to(dtype))
            with named_in_errors(source):
                hf = AutoModelForCausalLM.from_pretrained(found(source), dtype=dtype, use_safetensors=True)
            return cls(hf.train())

    @classmethod
    def outline(cls, source: str | TinyModel, dtype: torch.dtype = torch.float32) -> CausalLM:
        """A model as `load` makes it whose weights are memory that nothing was written to, which the system has not given yet.

        Raises:
            ConfigError: no config of that name can be loaded.
        """
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.initialization import no_init_weights

        with torch.device("cpu"), no_init_weights():
            hf = AutoModelForCausalLM.from_config(load_config(source), dtype=dtype)
        hf.tie_weights()
        if not isinstance(source, TinyModel):
            with suppress(OSError):  # a folder need not have one
                hf.generation_config = GenerationConfig.from_pretrained(source)
        return cls(hf.train())

    @classmethod
    def load_sharded(cls, source: str | TinyModel, mesh: DeviceMesh, lora: LoRA | None = None, **policies: Any) -> CausalLM:
        """As `load` and then `shard`, but no process ever holds more than its shards and one decoder layer, or what is outside
        the layers.

        Raises:
            ConfigError: as `load`.
        """
        if not isinstance(source, TinyModel):
            with named_in_errors(source):
                saved = SavedWeights(found(source))
            model = cls.outline(source)
            names = {id(weight): name for name, weight in reversed(model.hf.state_dict(keep_vars=True).items())}
            if missing := sorted({*names.values()} - saved.files.keys()):
                rank_zero_warn(f"{source} has no {missing[0]} under that name, so every process loads the whole model first")
            else:
                if lora:
                    model.add_adapters(lora)
                model.shard(mesh, lambda weights: _fill(weights, saved, names), **policies)
                return model
        model = cls.load(source)
        if lora:
            model.add_adapters(lora)
        model.shard(mesh, **policies)
        return model

    def score(self, tokens: Tensor, keep: Tensor, temperature: float = 1.0, compare: Compare | None = None) -> Scores:
        """Log-probability and entropy at every kept token, in chunks that never hold tokens x vocabulary.

        Args:
            tokens: (N, L) int64, right-padded, L > 1.
            keep: (N, L) bool, the tokens to score; never the first of a row, which nothing precedes.
            temperature: divides the logits, as in `SamplingSpec.scoring_temperature`.
            compare: also asked for a value per kept token from the whole distribution; it runs twice, the second time
                in the backward pass, so it may use `head_logits` of a frozen model but must draw nothing at random.
        """
        hidden, weight = self._hidden(tokens, keep), self._head
        logprobs, entropy = token_logprobs(hidden, weight, tokens[keep], temperature)
        compared = None if compare is None else compare_distributions(hidden, weight, temperature, compare)
        return Scores(*(None if v is None else _placed(v, keep) for v in (logprobs, entropy, compared)))

    def hidden(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """(K, H) hidden states that predict the K kept tokens, in the row-major order of `keep` (N, L)."""
        return self._hidden(tokens, keep)

    def head_logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """(k, V) logits, at least float32, of states from `hidden`; on a sharded model, right after it ran."""
        return head_logits(hidden, self._head, temperature)

    def named_full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight once, by its name in a saved folder, gathered while it is looked at, adapters merged.

        On a sharded model this is a collective per weight: every rank must consume it to the end.
        """
        tied = self.tied_weights()
        once = ((name, weight) for name, weight in self.hf.state_dict().items() if name not in tied)
        yield from merged_weights(once, self.hf, _gathered if self.is_sharded else lambda weight: weight)

    def fingerprint(self) -> int:
        """Of all weights, bit by bit, whatever they are sharded over; every rank must call it."""
        width = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        total = torch.zeros((), dtype=torch.int64)
        for place, weight in enumerate(self.hf.parameters(), start=1):
            mine = weight.detach().to_local() if self.is_sharded else weight.detach()
            total += place * mine.contiguous().view(width[mine.element_size()]).sum(dtype=torch.int64).cpu()
        if self.is_sharded:
            parts = [0] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, int(total))
            return sum(parts) % 2**63
        return int(total) % 2**63

    def tied_weights(self) -> dict[str, str]:
        """{further name of a weight: the name under which `named_full_weights` yields it}"""
        names: dict[int, str] = {}
        tied = {}
        for name, weight in self.hf.state_dict(keep_vars=True).items():
            first = names.setdefault(id(weight), name)
            if first != name:
                tied[name] = first
        return tied

    def add_adapters(self, lora: LoRA) -> None:
        """Freezes the model and trains adapters beside its layers.

        Raises:
            ConfigError: no layer has one of the names in `lora.targets`.
        """
        add_adapters(self.hf, lora)

    def shard(self, mesh: DeviceMesh, fill: Callable[[Iterable[Tensor]], None] | None = None, **policies: Any) -> None:
        """Shards the parameters over a one-dimensional mesh (FSDP2): each decoder layer, then the rest.

        Args:
            fill: gets the weights of each part just before it is sharded.
            policies: of `torch.distributed.fsdp.fully_shard`.
        """
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        layers, outside = self.hf.get_decoder().layers, dict(self.hf.state_dict(keep_vars=True))
        for layer in layers:
            weights = layer.state_dict(keep_vars=True).values()
            if fill:
                fill(weights)
            inside = {*map(id, weights)}
            outside = {name: weight for name, weight in outside.items() if id(weight) not in inside}
            del weights
            fully_shard(layer, mesh=mesh, **policies)
        if fill:
            fill(outside.values())
        policies.pop("reshard_after_forward", None)  # the head is read right after the forward pass
        fully_shard(self, mesh=mesh, **policies)
        for name in ("score", "hidden"):
            register_fsdp_forward_method(self, name)
        self.is_sharded = True

    def checkpoint_activations(self) -> None:
        """In training the activations of a decoder layer are computed again in the backward pass instead of kept."""
        self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def unsharded_like(self) -> CausalLM:
        """A whole model with the same config, dtype and device; its weights are empty memory for the caller to fill."""
        from transformers.initialization import no_init_weights

        mesh = getattr(self._head, "device_mesh", None)
        with torch.device(mesh.device_type if mesh else self._head.device), no_init_weights():
            hf = type(self.hf)._from_config(self.hf.config, dtype=self._head.dtype)
        hf.tie_weights()
        hf.generation_config = self.hf.generation_config
        return CausalLM(hf)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes a transformers folder (safetensors) on the first rank; a sharded model must call it on every rank."""
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        weights = {name: weight.cpu().to(self._head.dtype) for name, weight in self.named_full_weights() if first}
        if first:
            self.hf.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)

    @property
    def vocabulary_size(self) -> int:
        """Of the embeddings, padding included: a tokenizer may have fewer tokens."""
        return self.hf.config.vocab_size

    @property
    def _head(self) -> Tensor:
        return self.hf.get_output_embeddings().weight

    def _hidden(self, tokens: Tensor, keep: Tensor) -> Tensor:
        if keep[:, 0].any():
            raise ValueError("keep marks the first token of a row; expected only tokens that another one precedes")
        packing = pack(tokens, keep) if self.packs else None
        if packing is None:
            states = self.hf.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            return states[keep[:, 1:]]
        states = self.hf.base_model(
            input_ids=tokens.flatten()[packing.source][None],
            position_ids=packing.positions[None],
            attention_mask=packing.homes[None, None, None],  # so that transformers makes none
            packing=packing,
            use_cache=False,
        ).last_hidden_state
        return states[0, packing.places]

    @cached_property
    def packs(self) -> bool:
        """What rows have in common can be computed once."""
        config = self.hf.config
        whole = {"full_attention"}.issuperset(getattr(config, "layer_types", None) or ())
        return config.model_type in PACKABLE and whole and config._attn_implementation in ("sdpa", NAME)


def _fill(weights: Iterable[Tensor], saved: SavedWeights, names: Mapping[int, str]) -> None:
    with torch.no_grad():
        for weight in weights:
            if id(weight) in names:  # adapters are new
                weight.copy_(saved[names[id(weight)]])


def _gathered(weight: DTensor) -> Tensor:
    """The whole of a shard, also of one that is kept on the CPU between its uses."""
    return weight.to(weight.device_mesh.device_type).full_tensor()


def _placed(values: Tensor, keep: Tensor) -> Tensor:
    """(K,) values at the kept places of an (N, L) tensor of zeros."""
    return values.new_zeros(keep.shape).masked_scatter(keep, values)
