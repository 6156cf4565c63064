"""Image features of a class that is known by name only, made from those of its neighbours (OGEN)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unseen.errors import InputError


class ClassConditionalGenerator(nn.Module):
    """normalize(FFN(Q) + attention(Q, K, V)): text features ask, neighbours' texts and images answer.

    dim    of the joint space; heads must divide it
    k      neighbours that a class is made from
    mode   "joint" attends to all neighbours at once; "per_class" makes one feature from each and averages these
    Runs in float32 whatever goes in: attention and its loss overflow in half precision.
    Zang et al. 2024, arXiv 2401.15914, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        k: int = 3,
        mode: Literal["joint", "per_class"] = "joint",
        *,
        dropout: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError("dim", f"is {dim}, which {heads} heads do not divide", "Give a multiple.")
        if k < 1:
            raise InputError("k", f"is {k}", "Give at least one neighbour.")
        if mode not in ("joint", "per_class"):
            raise InputError("mode", f"is {mode!r}", "Give 'joint' or 'per_class'.")
        self.dim, self.k, self.mode = dim, k, mode
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
            self.body = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q, dim) image features of length 1.

        query   (B, Q, dim) text features of the classes to make
        key     (B, K, dim) text features of their neighbours; value (B, K, dim) images of these
        """
        query, key, value = query.float(), key.float(), value.float()
        with torch.autocast(query.device.type, enabled=False):
            if self.mode == "joint":
                return self._made(query, key, value)
            parts = [self._made(query, key[:, [i]], value[:, [i]]) for i in range(key.shape[1])]
            return normalize(torch.stack(parts).mean(0), dim=-1)

    def _made(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended, _ = self.attention(query, key, value, need_weights=False)
        return normalize(self.body(query) + attended, dim=-1)
