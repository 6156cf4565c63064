"""CIDER of OOD detection: a prototype a class, features compact around theirs, prototypes dispersed.

Not to be mistaken for CIDer of missing modalities (`objectives/cider.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.prototypes import PrototypeBank, prototype_separation, require_unit
from unseen.objectives.base import Loss
from unseen.objectives.targets import likeliest_class
from unseen.objectives.two_views import TwoViews
from unseen.registry import objectives
from unseen.shifts import Batch


class CompactDispersedLoss(nn.Module):
    """Cross-entropy of features to the prototypes of the classes + `weight` times the prototypes' separation.

    bank    one prototype a class, with a momentum; every call moves them
    tau     temperature of both
    Ming et al. 2023, equations 5 to 7. There, prototypes begin at the classes' means and move once for each example
    of their class, one after the other; here from random directions, once for the mean of those in the batch.
    """

    def __init__(self, bank: PrototypeBank, tau: float = 0.1, weight: float = 2.0):
        super().__init__()
        if bank.per_class != 1:
            raise InputError("bank", f"has {bank.per_class} prototypes a class", "Give it one a class.")
        if not tau > 0:
            raise InputError("tau", f"is {tau}", "Give a positive number, such as 0.1.")
        if not weight >= 0:
            raise InputError("weight", f"is {weight}", "Give a number from 0.")
        self.bank, self.tau, self.weight = bank, tau, weight

    def forward(self, z: Tensor, y: Tensor, *, repeat: bool = False) -> Loss:
        """Loss of unit vectors z (B, V, D) of V views with labels y (B,); `repeat` as for `PALMLoss`."""
        points = require_unit(z, self.bank.dim).flatten(0, 1)
        labels = y.repeat_interleave(z.shape[1])
        weights = (labels[:, None] == self.bank.labels).to(points.dtype)
        prototypes = self.bank.moved(self.bank.start(repeat), points, weights)
        if not repeat:
            self.bank.keep(prototypes, weights)
        compactness = nn.functional.cross_entropy(points @ prototypes.detach().T / self.tau, labels)
        dispersion = prototype_separation(prototypes, self.tau)
        total = compactness + self.weight * dispersion
        return Loss(total, {"compactness": compactness, "dispersion": dispersion})


@objectives.register(
    "compact-dispersed",
    summary="CIDER of OOD detection: features compact around dispersed class prototypes, and a linear probe",
    paper="Ming et al. 2023, arXiv 2203.04450",
    search={"weight": ("log", 0.2, 5.0), "momentum": ("choice", [0.5, 0.9, 0.95, 0.99])},
)
class CompactDispersed(TwoViews):
    """`CompactDispersedLoss` of the projections; see `TwoViews` for the probe.

    weight    of the dispersion, 2 in the published code
    momentum  of the prototypes; 0.95 there for CIFAR-10 and 0.5 for CIFAR-100, an example at a time
    tau       temperature
    """

    def __init__(
        self,
        weight: float = 2.0,
        momentum: float = 0.95,
        tau: float = 0.1,
        projection: int = 128,
        crop: float = 0.5,
        flip: bool = True,
        corruption: float = 0.3,
    ):
        super().__init__(projection, crop, flip, corruption)
        self.weight, self.momentum, self.tau = weight, momentum, tau
        self._loss(1, torch.Generator())  # wrong options are reported before training

    def _loss(self, classes: int, generator: torch.Generator | None = None) -> CompactDispersedLoss:
        bank = PrototypeBank(classes, 1, self.projection, self.momentum, generator=generator)
        return CompactDispersedLoss(bank, self.tau, self.weight)

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        super().setup(features=features, classes=classes, domains=domains)
        self.loss = self._loss(classes)

    def contrast(self, z: Tensor, batch: Batch) -> Loss:
        return self.loss(z, likeliest_class(batch.y), repeat=batch.repeat)
