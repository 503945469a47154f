"""A key-value cache with room for some tokens to come, so that not every new token copies all before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BLOCK = 64
"""Tokens by which the memory of a layer grows."""


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a model; its layers of full attention are `RoomyLayer`s."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """`keys` and `values` are views of larger `memory`: of its first rows, up to the tokens that are there."""

    memory: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if self.memory is None or end > self.memory[0].shape[-2]:
            old, self.memory = (self.keys, self.values), tuple(_room_for(states, len(states), end) for states in new)
            if start:
                self._write(old, 0, start)
        self._write(new, start, end)
        self._look(len(key_states), end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        old, length = (self.keys, self.values), self.get_seq_length()
        self.memory = tuple(_room_for(states, len(states) * repeats, length) for states in old)
        self._write(tuple(states.repeat_interleave(repeats, 0) for states in old), 0, length)
        self._look(len(old[0]) * repeats, length)

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        self._write((self.keys[indices], self.values[indices]), 0, length)
        self._look(len(indices), length)

    def _write(self, new: tuple[Tensor, Tensor], start: int, end: int) -> None:
        for memory, states in zip(self.memory, new, strict=True):
            memory[: len(states), :, start:end] = states

    def _look(self, rows: int, length: int) -> None:
        self.keys, self.values = (memory[:rows, :, :length] for memory in self.memory)


def _room_for(like: Tensor, rows: int, length: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], -(-length // BLOCK) * BLOCK, like.shape[3])
