"""Warm start: the head alone for some steps, so that its first gradients do not spoil pretrained features."""

from __future__ import annotations

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule


@updates.register(
    "warm-start",
    summary="Train the head alone first, then everything (the warm start of ERM++)",
    paper="Teterwak et al. 2023, arXiv 2304.01973 (ERM++); Kumar et al. 2022, arXiv 2202.10054 (LP-FT)",
    search={"head_steps": ("choice", [0, 15, 30, 60])},
)
class WarmStart(UpdateRule):
    """The plain update, in whose first `head_steps` updates nothing but the network's head moves.

    What an objective owns waits like the features. The optimizer then starts afresh. The default is the share
    that DomainBed gives it, 500 of 5000 steps, of a learner's 300. LP-FT
    trains the head to convergence first, say for half of them: then fine-tuning distorts the features least.

    ERM++ is `warm-start+swa(start=0.12)` on a pretrained `backbone`: its model parameter averaging is the mean
    of all weights from step 600 of 5000 on. The rest of it are no methods but settings: strong pretrained
    weights (`backbone`), the number of steps found on validation data (`patience`) and training again on all
    data with it (the share of validation data of a split). Its learning rate that falls when the validation
    loss no longer does has its like in `schedule="cosine"`, and its own rate of the head has none.
    """

    def __init__(self, head_steps: int = 30):
        if head_steps < 0:
            raise InputError("head_steps", f"is {head_steps}", "Give a whole number from 0.")
        self.head_steps = head_steps

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        if batch.step == self.head_steps > 0:
            self.reset()
        loss = self.gradient(loss_function, batch)
        if batch.step < self.head_steps:
            for (name, _), parameter in zip(self.module.named_parameters(), self.parameters, strict=True):
                if not name.startswith("network.head."):
                    parameter.grad = None
        self.apply()
        return loss
