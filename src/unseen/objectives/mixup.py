"""Mixup: train on convex combinations of pairs of examples and of their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import map_tensors


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

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        # numpy's generator takes a seed, torch.distributions does not
        seed = int(torch.randint(2**62, (1,), generator=generator))
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        partner = torch.randperm(len(batch), generator=generator).to(batch.domain.device)
        targets = (
            batch.y if batch.y.is_floating_point() else nn.functional.one_hot(batch.y, self.classes).float()
        )
        mixed = map_tensors(lambda x: share * x + (1 - share) * x[partner], batch.x)
        return replace(batch, x=mixed, y=share * targets + (1 - share) * targets[partner])

    def forward(self, model: Network, batch: Batch) -> Loss:
        return Loss(example_losses(model(batch.x), batch).mean())
