"""A key-value cache with room for some tokens to come, so that not every new token copies all before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BLOCK = 64
"""Tokens by which the memory of a layer grows; a shorter one has no room, for copying it costs less than gaps between rows."""


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a model; its layers of full attention are `RoomyLayer`s."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """`keys` and `values` are views of `memory`: of the tokens that are there."""

    memory: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        key_states = key_states.to(value_states.dtype)  # in mixed precision rotary positions leave keys in float32
        start, new = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if end < BLOCK:
            self.memory = super().update(key_states, value_states)
            return self.memory
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.keys, self.values
        if self.memory is None or end > self.memory[0].shape[-2]:
            self.memory = tuple(_room_for(states, len(states), end) for states in new)
            if start:
                self._write(old, 0, start)
        self._write(new, start, end)
        self._look(end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.memory = tuple(states.repeat_interleave(repeats, 0) for states in (self.keys, self.values))
        self.keys, self.values = self.memory

    def batch_select_indices(self, indices: Tensor) -> None:
        old, length = (self.keys, self.values), self.get_seq_length()
        self.memory = tuple(_room_for(states, len(indices), length) for states in old)
        for memory, states in zip(self.memory, old, strict=True):
            torch.index_select(states, 0, indices, out=memory[:, :, :length])
        self._look(length)

    def _write(self, new: tuple[Tensor, Tensor], start: int, end: int) -> None:
        for memory, states in zip(self.memory, new, strict=True):
            memory[:, :, start:end] = states

    def _look(self, length: int) -> None:
        self.keys, self.values = (memory[:, :, :length] for memory in self.memory)


def _room_for(like: Tensor, rows: int, length: int) -> Tensor:
    room = length if length < BLOCK else -(-length // BLOCK) * BLOCK
    return like.new_empty(rows, like.shape[1], room, like.shape[3])
