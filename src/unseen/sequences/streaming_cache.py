"""Key/value cache for streaming: starting rows and local rows stay, the middle is evicted."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.sequences.attention_policy import AttentionPolicy
from unseen.sequences.policy_attention import starting_rows


def evict_middle(x: Tensor, first: int, last: int) -> Tensor:
    """The first `first` and the last `last` rows of x (B, H, K, d); x itself if it has no more than these."""
    if x.shape[2] <= first + last:
        return x
    return torch.cat([x[:, :, :first], x[:, :, -last:]], dim=2)


class StreamingCache:
    """Un-rotated keys and values of every layer of a `DecoderLM`.

    Under a policy with a window it never holds more than n_global + n_local rows per layer (and the longest
    left padding of the prompt) between calls, whatever the length of the text; otherwise it grows.

    policy   attention policy of the model
    padding  (B,) left-padding tokens of the prompt, or None
    length   tokens seen so far, evicted ones included
    """

    def __init__(self, policy: AttentionPolicy, padding: Tensor | None = None):
        self.policy, self.padding = policy, padding
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def rows(self) -> int:
        """Key rows held per layer."""
        return max((keys.shape[2] for keys, _ in self._layers.values()), default=0)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append new rows (B, H_kv, T, d_h) and return all that their queries may need; then evict."""
        if layer in self._layers:
            past_k, past_v = self._layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        first, last = starting_rows(self.policy, self.padding), self.policy.cache_window
        if last is None:
            self._layers[layer] = k, v
        else:
            self._layers[layer] = evict_middle(k, first, last), evict_middle(v, first, last)
        return k, v
