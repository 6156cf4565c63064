"""One batch: examples of all training domains in one tensor, told apart by an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply `function` to a tensor or to each tensor of a (nested) dict of tensors."""
    if isinstance(inputs, dict):
        return {key: map_tensors(function, value) for key, value in inputs.items()}
    return function(inputs)


@dataclass
class Batch:
    """B examples drawn from D training domains.

    x       inputs, a tensor of shape (B, ...) or a dict of such tensors (several modalities, graphs)
    y       labels, (B,) int64, or soft targets, (B, C) float
    domain  (B,) int64 in [0, domains): index among the *training* domains
    domains D, the number of training domains, also when a batch happens to miss one
    ids     (B,) int64, stable row numbers of the shift: the key of everything remembered per example
    group   (B,) int64 or None: an attribute such as background or sex
    weight  (B,) float or None: weight of each example's loss (None means one)
    unlabelled  inputs of U further examples (U, ...), whose labels nobody knows, or None: of the unseen
            distribution, for objectives that need them. Not aligned with B: every part of a batch has all of them
    auxiliary  inputs of U known outliers (U, ...), which are of no class, or what an objective's `prepare` has made
            of them (mixtures with targets, noise), or None. Not aligned with B either
    step    number of the training step, from 0: what schedules read
    repeat  True when an update rule evaluates the same batch again; objectives with running state
            (moving averages, group weights) update it on the first evaluation only
    """

    x: Inputs
    y: Tensor
    domain: Tensor
    domains: int
    ids: Tensor | None = None
    group: Tensor | None = None
    weight: Tensor | None = None
    step: int = 0
    repeat: bool = False
    unlabelled: Inputs | None = None
    auxiliary: Inputs | None = None

    def __len__(self) -> int:
        return len(self.domain)

    def again(self) -> Batch:
        """The same batch, marked as evaluated before."""
        return replace(self, repeat=True)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor whose first dimension is the batch; `unlabelled` and `auxiliary` stay."""
        changed = {
            name: function(value)
            for name in ("y", "domain", "ids", "group", "weight")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, x=map_tensors(function, self.x), **changed)  # type: ignore[arg-type]

    def take(self, index: Tensor) -> Batch:
        """The examples that `index` (int64 positions or a boolean mask over B) names."""
        return self.map(lambda tensor: tensor[index])

    def of_domain(self, domain: int) -> Batch:
        """The examples of one training domain; may be empty."""
        return self.take(self.domain == domain)

    def to(self, device: torch.device | str) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        moved = self.map(move)
        moved.unlabelled = None if self.unlabelled is None else map_tensors(move, self.unlabelled)
        moved.auxiliary = None if self.auxiliary is None else map_tensors(move, self.auxiliary)
        return moved
