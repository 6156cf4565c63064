"""Streaming key/value cache for `transformers` decoders. Importing this module needs transformers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from unseen.sequences.streaming_cache import evict_middle


class StreamingLayer(DynamicLayer):
    """Keys and values of one layer: the first `first` and the last `last` rows stay between calls."""

    is_croppable = False  # evicted rows cannot come back

    def __init__(self, first: int, last: int):
        super().__init__()
        self.first, self.last = first, last
        self.cumulative_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append new rows and return all that their queries may need; then evict the middle."""
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], dim=-2)
            value_states = torch.cat([self.values, value_states], dim=-2)
        self.cumulative_length += new
        self.keys = evict_middle(key_states, self.first, self.last)
        self.values = evict_middle(value_states, self.first, self.last)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones included: the position of the next query."""
        return self.cumulative_length


def streaming_cache(layers: int, first: int, last: int) -> Cache:
    """A `Cache` of `layers` layers that keeps `first` starting and `last` local rows in each."""
    return Cache(layers=[StreamingLayer(first, last) for _ in range(layers)])
