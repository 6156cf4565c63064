"""A labelled data set as a whole: any of its examples as a batch, and gradient descent on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from unseen.errors import InputError
from unseen.networks.modes import evaluating
from unseen.objectives.stages import Stage
from unseen.shifts import Batch


class WholeData:
    """N examples whose order never changes: what is remembered of one is remembered by its position.

    get    gives the examples at positions (B,) as a batch, on the device to compute on
    whole  all examples as one batch, where they are at hand
    """

    def __init__(self, size: int, get: Callable[[Tensor], Batch], whole: Batch | None = None):
        if size < 1:
            raise InputError("data", "hold no example", "Give at least one.")
        self.size, self._get, self._whole = size, get, whole

    @classmethod
    def of(cls, data: Any, device: torch.device | str = "cpu") -> WholeData:
        """From a `Batch` of all examples, or a map-style dataset of (x, y) or (x, y, domain), or its loader."""
        if isinstance(data, WholeData):
            return data
        if isinstance(data, Batch):
            data = data.to(device)
            return cls(len(data), data.take, data)
        if isinstance(data, DataLoader):  # whatever order it draws in, its dataset has one
            data = data.dataset
        if (
            isinstance(data, IterableDataset)
            or not hasattr(data, "__getitem__")
            or not hasattr(data, "__len__")
        ):
            raise InputError(
                f"dataset of type {type(data).__name__}",
                "has no stable order: what is known of an example must be found again by its number",
                "Give a map-style dataset, with __len__ and __getitem__, or a Batch of all examples.",
            )

        def get(positions: Tensor) -> Batch:
            x, y, *rest = default_collate([tuple(data[i]) for i in positions.tolist()])
            y = y.float() if y.is_floating_point() else y.long()
            domain = rest[0].long() if rest else torch.zeros(len(y), dtype=torch.int64)
            return Batch(x=x, y=y, domain=domain, domains=1).to(device)

        return cls(len(data), get)

    @classmethod
    def of_stage(cls, stage: Stage) -> WholeData:
        """The training rows of a run."""
        rows = stage.rows("train")
        return cls(len(rows), lambda positions: stage.batch(rows[positions]))

    def batch(self, positions: Tensor) -> Batch:
        """The examples at `positions` (B,) on the CPU; their ids are these positions."""
        batch = self._get(positions)
        return replace(batch, ids=positions.to(batch.domain.device))

    def in_order(self, size: int = 512) -> Iterator[Batch]:
        """All examples once, `size` at a time."""
        for positions in torch.arange(self.size).split(size):
            yield self.batch(positions)

    def draw(self, size: int | None, shares: Tensor | None, generator: torch.Generator) -> Batch:
        """A batch for a step of descent: all examples when `size` is None or above N, else `size` of them.

        shares  (N,) chances of the examples, up to a factor: as many are drawn with replacement
        """
        count = self.size if size is None else min(size, self.size)
        if shares is not None:
            return self.batch(torch.multinomial(shares, count, replacement=True, generator=generator))
        if count < self.size:
            return self.batch(torch.randperm(self.size, generator=generator)[:count])
        if self._whole is None:
            return self.batch(torch.arange(self.size))
        return replace(self._whole, ids=torch.arange(self.size, device=self._whole.domain.device))


@torch.no_grad()
def outputs_of(model: Callable[[Any], Tensor], data: WholeData) -> Tensor:
    """(..., N, C) outputs for all examples in their order, in evaluation mode, on the CPU."""
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        return torch.cat([model(batch.x).cpu() for batch in data.in_order()], -2)


def minimise(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    data: WholeData,
    *,
    steps: int,
    learning_rate: float,
    l2: float = 0.0,
    batch_size: int | None = None,
    shares: Tensor | None = None,
    generator: torch.Generator,
) -> None:
    """Adam on `loss` of batches from `WholeData.draw`; l2 times the squared norm of all weights is added."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # d/dw of l2 |w|^2 is 2 l2 w, which is what Adam's (coupled) weight decay adds to the gradient
    optimizer = torch.optim.Adam(trained, lr=learning_rate, weight_decay=2 * l2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(data.draw(batch_size, shares, generator))
        if not torch.isfinite(value):
            raise InputError("learning_rate", f"{learning_rate:g} makes the loss {value.item()}", "Lower it.")
        value.backward()
        optimizer.step()
