"""When and how strongly a penalty counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.objectives.base import Loss


def from_step(start: int | Tensor, step: int, then: Any, before: Any) -> Any:
    """`then` from update `start` on, `before` until it.

    In stacked runs that differ in `start` it is a tensor, one value a run, and so is the answer.
    """
    if isinstance(start, Tensor):
        return torch.where(start <= step, then, before)
    return then if step >= start else before


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

    def weight_at(self, step: int) -> Any:
        return from_step(self.warmup_steps, step, self.weight, self.warmup_weight)

    def switches_at(self, step: int) -> bool:
        """Whether the weight jumps at update `step`, when the moments that Adam has gathered mislead it."""
        return step == self.warmup_steps > 0 and self.weight != self.warmup_weight

    def loss(self, risk: Tensor, penalty: Tensor, step: int) -> Loss:
        weight = self.weight_at(step)
        total = risk + weight * penalty
        if self.rescale_loss:
            total = total / (weight.clamp(min=1) if isinstance(weight, Tensor) else max(weight, 1.0))
        return Loss(total, {"risk": risk, "penalty": penalty})
