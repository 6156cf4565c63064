"""BANG's fine-tuning: softened targets, so that the network stays as modest as the one it will be averaged with."""

from __future__ import annotations

from dataclasses import replace

import torch

from unseen.errors import InputError
from unseen.objectives.mixup import Mixup
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "label-smoothing",
    summary="Cross-entropy on labels of which a share is spread over all classes",
    paper="Szegedy et al. 2016, arXiv 1512.00567",
    preset={"mixup_alpha": 0.0},
    search={"smoothing": ("choice", [0.05, 0.1, 0.2])},
)
@objectives.register(
    "bang",
    summary="Mixup on smoothed labels: fine-tuning that does not grow over-confident, before averaging",
    paper="Lin et al. 2024, arXiv 2309.17230",
    search={"smoothing": ("choice", [0.05, 0.1, 0.2]), "mixup_alpha": ("log", 0.1, 1.0)},
)
class BalancedFineTuning(Mixup):
    """Cross-entropy; targets are (1 - smoothing) y + smoothing / C, then mixed as in `mixup`.

    smoothing    share of a label that is spread over all C classes, in [0, 1)
    mixup_alpha  of the Beta distribution of the mixing share; 0 mixes nothing

    Over-confident networks dominate an average of weights or outputs. BANG is this objective with the averaging
    `wise-ft`. The paper's values of both settings are not known to us; those here are the usual ones.
    """

    def __init__(self, smoothing: float = 0.1, mixup_alpha: float = 0.2):
        super().__init__(mixup_alpha)
        if not 0 <= smoothing < 1:
            raise InputError("smoothing", f"is {smoothing}", "Give a share in [0, 1), such as 0.1.")
        if mixup_alpha < 0:
            raise InputError("mixup_alpha", f"is {mixup_alpha}", "Give a number from 0, such as 0.2.")
        self.smoothing = smoothing

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        targets = class_probabilities(batch.y, self.classes, torch.get_default_dtype())
        if targets.shape != (len(batch), self.classes):
            raise InputError(
                f"targets of shape {tuple(batch.y.shape)}",
                f"are neither labels nor shares of {self.classes} classes",
                "Mixing and smoothing need classes.",
            )
        smooth = (1 - self.smoothing) * targets + self.smoothing / self.classes
        batch = replace(batch, y=smooth)
        return super().prepare(batch, generator) if self.alpha else batch
