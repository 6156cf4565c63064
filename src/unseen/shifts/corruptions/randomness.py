"""Random numbers that belong to an image, not to its place in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class RandomStream:
    """Draws random tensors of shape (B, ...), one row an image.

    The n-th draw of an image depends on the seed, the image's id and n only: the same image gets the same
    numbers in any batch, in any order and at any severity. They differ between kinds of device.
    """

    def __init__(self, seed: int, ids: Sequence[int], device: torch.device | str = "cpu"):
        self.seed, self.ids, self.device = seed, ids, torch.device(device)
        self._generator = torch.Generator(self.device)
        self._draws = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) values, uniform in [low, high)."""
        return self._fill(shape, lambda row, generator: row.uniform_(low, high, generator=generator))

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) values of the standard normal distribution."""
        return self._fill(shape, lambda row, generator: row.normal_(generator=generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(B, *shape) whole numbers in [low, high), int64."""
        return self._fill(
            shape, lambda row, generator: row.random_(low, high, generator=generator), dtype=torch.int64
        )

    def poisson(self, rates: Tensor) -> Tensor:
        """One Poisson draw for each of the (B, ...) rates."""
        rows = iter(rates)
        return self._fill(
            rates.shape[1:], lambda row, generator: row.copy_(torch.poisson(next(rows), generator=generator))
        )

    def _fill(
        self,
        shape: Sequence[int],
        fill: Callable[[Tensor, torch.Generator], Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        drawn = torch.empty(len(self.ids), *shape, dtype=dtype, device=self.device)
        for identity, row in zip(self.ids, drawn, strict=True):
            fill(row, self._generator.manual_seed(_mix(self.seed, identity, self._draws)))
        self._draws += 1
        return drawn


def _mix(seed: int, identity: int, draw: int) -> int:
    """A well-spread 63-bit number (the finaliser of SplitMix64, Steele et al. 2014).

    PyTorch's CPU generator looks at the low 32 bits only, so neighbouring ids must differ there at random.
    """
    z = (seed * 0x9E3779B97F4A7C15 + identity * 0xD1342543DE82EF95 + draw * 0xDA942042E4DD58B5) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1
