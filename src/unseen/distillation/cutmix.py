"""CutMix for distillation: with a probability, and with labels as shares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import one_hot

from unseen.errors import InputError
from unseen.objectives.mixing import check_alpha, cutmix
from unseen.shifts import Batch


@dataclass(frozen=True)
class CutMix:
    """Every image of a batch gets one rectangle of a partner's, and labels become shares (Yun et al. 2019).

    probability  of mixing a batch, in [0, 1]
    beta         shares are drawn from Beta(beta, beta), > 0
    """

    probability: float = 0.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError("probability", f"is {self.probability}", "Give a number in [0, 1].")
        check_alpha(self.beta)

    def prepare(self, batch: Batch, classes: int, generator: torch.Generator) -> Batch:
        """The batch with mixed images (B, channels, height, width) and labels (B, C), or as it is."""
        if float(torch.rand((), generator=generator)) >= self.probability:
            return batch
        shares = batch.y if batch.y.is_floating_point() else one_hot(batch.y, classes).float()
        mixed, shares, _ = cutmix(batch.x, shares, self.beta, generator)  # type: ignore[arg-type]
        return replace(batch, x=mixed, y=shares)
