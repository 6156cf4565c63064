"""Mixup: train on convex combinations of pairs of examples and of their labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.mixing import blend_with, draw_mixture
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "mixup",
    summary="Convex combinations of pairs of examples, across domains",
    paper="Zhang et al. 2018, arXiv 1710.09412; across domains: Wang et al. 2020, arXiv 2001.00677",
    search={"alpha": ("log", 0.1, 10.0)},
)
class Mixup(Objective):
    """One lambda ~ Beta(alpha, alpha) a batch; partners come from the whole batch, across domains.

    A mixed example keeps the domain of its first part.
    """

    def __init__(self, alpha: float = 0.2):
        super().__init__()
        self.alpha = alpha

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.classes = classes

    def draw(self, examples: int, generator: torch.Generator) -> dict[str, Tensor]:
        return draw_mixture(self.alpha, examples, generator)

    def change(self, batch: Batch, drawn: dict[str, Tensor]) -> Batch:
        targets = class_probabilities(batch.y, self.classes, torch.float32)
        x, y = blend_with(batch.x, targets, **drawn)
        return replace(batch, x=x, y=y)

    def forward(self, model: Network, batch: Batch) -> Loss:
        return Loss(example_losses(model(batch.x), batch).mean())
