"""The plain update: one gradient, one optimizer step."""

from __future__ import annotations

from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule


@updates.register("plain", summary="One gradient, one step of the optimizer")
class Plain(UpdateRule):
    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        self.apply()
        return loss
