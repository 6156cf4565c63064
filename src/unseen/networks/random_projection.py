"""Random projections whose matrix is made anew from a seed, tile by tile, and never stored."""

from __future__ import annotations

import zlib
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.sampling import derive_seed

Kind = Literal["rademacher", "gaussian"]
TILE = 2048
"""Coordinates whose part of the matrix is in memory at a time; part of what a seed means."""


class RandomProjection:
    """y = g R / sqrt(k), with independent entries of mean 0 and variance 1 in R (P, k): E <y, y'> = <g, g'>.

    dimension  k, from 1
    seed       decides R
    kind       "rademacher": signs; "gaussian": normal entries, ten times as slow to make

    Each named parameter has a matrix of its own, which depends on seed and name alone. So the projection of a
    whole gradient is the sum of its parameters' projections, whichever are selected, and equal on all devices
    up to rounding.
    """

    def __init__(self, dimension: int, seed: int, kind: Kind = "rademacher"):
        if dimension < 1:
            raise InputError("projection dimension", f"is {dimension}", "Give a whole number from 1.")
        if kind not in ("rademacher", "gaussian"):
            raise InputError("projection kind", f"is {kind!r}", "Give 'rademacher' or 'gaussian'.")
        self.dimension, self.seed, self.kind = dimension, seed, kind

    def add(self, name: str, flat: Tensor, into: Tensor) -> None:
        """Add the projection of gradients (n, P) of the parameter `name` to `into` (n, k)."""
        for start in range(0, flat.shape[1], TILE):
            part = flat[:, start : start + TILE]
            tile = self._tile(name, start // TILE, part.shape[1]).to(part.device, part.dtype)
            into.addmm_(part, tile, alpha=self.dimension**-0.5)

    def _tile(self, name: str, index: int, rows: int) -> Tensor:
        """Rows `TILE * index` and on of the matrix of a parameter, float32 (rows, k)."""
        key = zlib.crc32(name.encode())  # Python's own hash of a text differs from process to process
        generator = torch.Generator().manual_seed(derive_seed(self.seed, key, index))
        if self.kind == "gaussian":
            return torch.randn(rows, self.dimension, generator=generator)
        count = rows * self.dimension
        words = torch.empty(-(-count // 64), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        signs = _SIGNS_OF_BYTE.index_select(0, words.view(torch.uint8).int())  # a draw makes 64 signs
        return signs.flatten()[:count].view(rows, self.dimension)


_SIGNS_OF_BYTE = torch.tensor([[1.0 - 2 * (byte >> bit & 1) for bit in range(8)] for byte in range(256)])
