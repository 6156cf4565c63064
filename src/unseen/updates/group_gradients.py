"""Gradients of groups of examples (down to single ones), one after the other, as flat vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.updates.base import LossFunction, UpdateRule
from unseen.updates.domains import pooled


class GroupGradients(UpdateRule):
    """Cuts the batch into groups and follows a robust mean, coordinate by coordinate, of their gradients.

    groups  number of groups, whose sizes differ by one example at most; None for one example each. The
            examples of each domain are shuffled (by `seed` and the step) and dealt out in turn: groups hold
            examples of every domain. A batch with fewer examples makes fewer groups.

    A group's loss is the objective on its examples alone: a penalty between domains sees what the group has
    of them. Each group takes a forward and a backward pass. (Measured: one pass vectorised over groups by
    `torch.func.vmap` is faster for single examples and small networks only, at most three times, and it
    excludes objectives with buffers.)
    """

    name: str

    def __init__(self, groups: int | None, seed: int = 0):
        if groups is not None and groups < 1:
            raise InputError(f"groups {groups}", "is below one", "Give a number of groups, or None.")
        self.groups, self.seed = groups, seed

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        network = getattr(module, "network", module)  # objectives see to their own: they know small batches
        self._batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        return self

    @abstractmethod
    def robust_mean(self, gradients: Iterator[Tensor], count: int) -> Tensor:
        """What to follow, of `count` vectors (P,), or (R, P) when stacked, that come one after the other.

        The vectors are the callee's to change.
        """

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        count = min(self.groups or len(batch), len(batch))
        if self._batch_norm and len(batch) // count < 2:
            raise InputError(
                f"update rule {self.name!r} with a network that has batch normalisation",
                f"needs gradients of single examples ({len(batch)} examples in {count} groups), "
                "which depend on the other examples",
                "Give fewer groups, or a network without batch normalisation.",
            )
        rows = self._shuffled(batch)
        parts = [batch.take(rows[index::count]) for index in range(count)]
        losses: list[Loss] = []
        used = [False] * len(self.parameters)

        def gradients() -> Iterator[Tensor]:
            for part in parts:
                losses.append(self.gradient(loss_function, part))
                for index, parameter in enumerate(self.parameters):
                    used[index] |= parameter.grad is not None
                yield self._flat()

        direction = self.robust_mean(gradients(), count)
        lead = int(self.stacked)
        pieces = direction.split([p.shape[lead:].numel() for p in self.parameters], -1)
        for parameter, piece, known in zip(self.parameters, pieces, used, strict=True):
            parameter.grad = piece.reshape(parameter.shape) if known else None
        self.apply()
        return pooled(losses, [len(part) for part in parts])

    def _shuffled(self, batch: Batch) -> Tensor:
        """Rows of the batch, domain after domain, in random order inside each."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, batch.step))
        rows = torch.randperm(len(batch), generator=generator).to(batch.domain.device)
        return rows[batch.domain[rows].argsort(stable=True)]

    def _flat(self) -> Tensor:
        """The present gradients end to end; a parameter without one counts as zeros."""
        lead = int(self.stacked)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.cat([gradient.flatten(lead) if lead else gradient.flatten() for gradient in found], -1)
