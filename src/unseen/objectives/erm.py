"""Empirical risk minimisation: the baseline that everything else must beat."""

from __future__ import annotations

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "erm", summary="Mean loss over all examples", paper="Vapnik 1998, Statistical Learning Theory"
)
class ERM(Objective):
    carries_weights = True

    def forward(self, model: Network, batch: Batch) -> Loss:
        return Loss(example_losses(model(batch.x), batch).mean())
