"""Weights, groups and whatever else is remembered of single examples, by their stable ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unseen.objectives.stages import Stage
from unseen.shifts import Batch


class Table(nn.Module):
    """A buffer whose shape is known only when training begins: a value an example, or a queue of batches.

    `values` is empty until `fill`; a state that is loaded brings its own shape along, so a resumed run needs
    no `Objective.begin` to make room for it.
    """

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(0))

    def fill(self, values: Tensor, device: torch.device | str | None = None) -> None:
        """Take the shape and content of `values`, (N, ...) with a row an id for values of examples."""
        self.values = values.detach().clone().to(device if device is not None else values.device)

    def of(self, batch: Batch) -> Tensor:
        """(B, ...) rows of the batch's examples."""
        return self.values[batch.ids]

    def set(self, batch: Batch, values: Tensor) -> None:
        """Write the rows of the batch's examples, (B, ...)."""
        self.values[batch.ids] = values.detach().to(self.values.dtype)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "values" in state:
            self.values = torch.empty_like(state[prefix + "values"], device=self.values.device)
        super()._load_from_state_dict(state, prefix, *rest)


def reweighted(batch: Batch, weights: Tensor) -> Batch:
    """The batch with its examples' weights multiplied by `weights` (B,)."""
    weights = weights.to(batch.domain.device)
    return replace(batch, weight=weights if batch.weight is None else batch.weight * weights)


def attribute_groups(stage: Stage, rows: Tensor) -> Tensor:
    """(N,) int64 groups of rows: the label crossed with the group attribute, or with the domain without one.

    Groups are numbered from 0 without gaps in the order of (label, attribute).
    """
    attribute = stage.groups(rows)
    crossed = stage.labels(rows) * (int(attribute.max()) + 1) + attribute
    return torch.unique(crossed, return_inverse=True)[1]


def balancing_weights(groups: Tensor) -> Tensor:
    """(N,) weights, of mean 1, under which each group (N,) has the same weight: N / (G n_g)."""
    present, position, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    return (len(groups) / (len(present) * counts.float()))[position]


def balanced_rows(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of a random subset in which every group (N,) has as many members as the smallest one."""
    members = [(groups == group).nonzero().squeeze(1) for group in torch.unique(groups)]
    smallest = min(len(own) for own in members)
    return torch.cat([own[torch.randperm(len(own), generator=generator)[:smallest]] for own in members])


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of weights (N,), in [1, N]: as many equal weights would have the variance (Kish 1965)."""
    return weights.sum().square() / weights.square().sum()
