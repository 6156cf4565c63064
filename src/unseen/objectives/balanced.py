"""Class- or group-balanced reweighting: every group counts the same, however many examples it has."""

from __future__ import annotations

from typing import Literal

import torch

from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.example_weights import Table, attribute_groups, balancing_weights, reweighted
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "balanced",
    summary="Examples weighted so that every group, or class, counts the same",
    paper="Idrissi et al. 2022, arXiv 2110.14503",
)
class Balanced(Objective):
    """ERM under weights N / (G n_g) of the training examples (RWG, RWY of the paper).

    by  "group": label crossed with the group attribute, or with the domain where there is none; "class"
    """

    carries_weights = True

    def __init__(self, by: Literal["group", "class"] = "group"):
        super().__init__()
        if by not in ("group", "class"):
            raise InputError("by", f"is {by!r}", nearest(by, ("group", "class")))
        self.by, self.weights = by, Table()

    def begin(self, stage: Stage) -> None:
        rows = stage.rows("train")
        groups = attribute_groups(stage, rows) if self.by == "group" else stage.labels(rows)
        weights = torch.ones(stage.size)
        weights[rows] = balancing_weights(groups)
        self.weights.fill(weights, stage.device)

    def forward(self, model: Network, batch: Batch) -> Loss:
        batch = reweighted(batch, self.weights.of(batch))
        return Loss(example_losses(model(batch.x), batch).mean())
