"""Which examples a training step sees: a pure function of (seed, step), so that nothing needs saving."""

from __future__ import annotations

import torch
from torch import Tensor


class DomainSampler:
    """Draws `per_domain` rows of every training domain, without replacement within an epoch of the domain.

    rows        (N,) training rows
    domain      (N,) their training-domain index in [0, D)
    per_domain  rows per domain and step; a smaller domain starts its next epoch within the step
    `rows(step)` gives D * per_domain rows, domain after domain. The same seed and step give the same rows on
    any machine: a resumed run goes on exactly where it was.
    """

    def __init__(self, rows: Tensor, domain: Tensor, per_domain: int, seed: int):
        self.pools = [rows[domain == index] for index in range(int(domain.max()) + 1)]
        self.per_domain, self.seed = per_domain, seed
        self._epochs: dict[tuple[int, int], Tensor] = {}

    def rows(self, step: int) -> Tensor:
        return torch.cat([self._of_domain(index, step) for index in range(len(self.pools))])

    def _of_domain(self, index: int, step: int) -> Tensor:
        size = len(self.pools[index])
        start, stop = step * self.per_domain, (step + 1) * self.per_domain
        parts = []
        for epoch in range(start // size, (stop - 1) // size + 1):
            order = self.epoch(index, epoch)
            parts.append(order[max(start - epoch * size, 0) : stop - epoch * size])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def epoch(self, index: int, epoch: int) -> Tensor:
        """The rows of a domain in the order in which one epoch visits them."""
        if (index, epoch) not in self._epochs:
            self._epochs.pop((index, epoch - 2), None)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, index, epoch))
            pool = self.pools[index]
            self._epochs[index, epoch] = pool[torch.randperm(len(pool), generator=generator)]
        return self._epochs[index, epoch]


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers (splitmix64 steps): independent streams from one seed."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
