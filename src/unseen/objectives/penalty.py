"""When and how strongly a penalty counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unseen.errors import InputError
from unseen.objectives.base import Loss


@dataclass(frozen=True)
class PenaltySchedule:
    """Weight of a penalty: `warmup_weight` in the first `warmup_steps` updates, `weight` afterwards.

    rescale_loss  divide the whole loss by the weight when it is above 1, so that its scale stays that of the
                  risk (Arjovsky et al. 2019, Colored MNIST). The optimizer's own weight decay is not divided:
                  give it `weight` times smaller than an L2 term inside the loss
    """

    weight: float = 1.0
    warmup_steps: int = 0
    warmup_weight: float = 0.0
    rescale_loss: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "warmup_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(
                    f"penalty {name}", f"is {getattr(self, name)}", "Give a finite number from 0."
                )
        if self.warmup_steps < 0:
            raise InputError("warmup_steps", f"is {self.warmup_steps}", "Give a number of steps from 0.")

    def weight_at(self, step: int) -> float:
        return self.warmup_weight if step < self.warmup_steps else self.weight

    def switches_at(self, step: int) -> bool:
        """Whether the weight jumps at update `step`, when the moments that Adam has gathered mislead it."""
        return step == self.warmup_steps > 0 and self.weight != self.warmup_weight

    def loss(self, risk: Tensor, penalty: Tensor, step: int) -> Loss:
        weight = self.weight_at(step)
        total = risk + weight * penalty
        if self.rescale_loss and weight > 1:
            total = total / weight
        return Loss(total, {"risk": risk, "penalty": penalty})
