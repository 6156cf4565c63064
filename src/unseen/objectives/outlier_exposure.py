"""Outlier exposure: known outliers are to be answered with uniform probabilities, or with a high energy."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_weights
from unseen.objectives.mixing import logits_of_both
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import Inputs


def outliers_of(objective: str, batch: Batch) -> Inputs:
    """The outliers of a batch. Raises `InputError` when it has none: a step without them would teach nothing."""
    if batch.auxiliary is None:
        raise InputError(
            f"objective {objective!r}",
            "got a batch without outliers",
            "Give inputs that are of no class: shift.with_outliers(inputs), or unseen run --outliers DATA.",
        )
    return batch.auxiliary


def uniform_losses(logits: Tensor) -> Tensor:
    """(U,) cross-entropy of each outlier with the uniform distribution: log C at least, at equal logits."""
    return -logits.log_softmax(-1).mean(-1)


def energy(logits: Tensor) -> Tensor:
    """(B,) -log sum_k exp(logits)_k: low for familiar examples."""
    return -logits.logsumexp(-1)


@objectives.register(
    "oe",
    summary="Outlier exposure: uniform answers to known outliers",
    paper="Hendrycks et al. 2019, arXiv 1812.04606",
    search={"weight": ("log", 0.1, 5.0)},
)
@objectives.register(
    "oe-m",
    summary="Outlier exposure to the most confidently answered outliers",
    paper="Zhang et al. 2023, WACV, pages 5531-5540; mining: Chen et al. 2021, arXiv 2006.15207",
    preset={"weight": 1.0, "hardest": 0.25},
    search={"weight": ("log", 0.1, 5.0), "hardest": ("choice", [0.1, 0.25, 0.5])},
)
class OutlierExposure(Objective):
    """Cross-entropy + weight * mean `uniform_losses` of the outliers.

    weight    0.5 for images in the paper, 1 for texts
    hardest   share of a step's outliers, in (0, 1], that count: those with the largest probability of a class.
              The published mining chooses them once an epoch, from 50 000
    together  whether examples and outliers pass the network at once, as in the published code
    """

    needs_outliers = True

    def __init__(self, weight: float = 0.5, hardest: float = 1.0, together: bool = True):
        super().__init__()
        check_weights(weight)
        if not 0 < hardest <= 1:
            raise InputError("hardest", f"is {hardest}", "Give a share above 0 and at most 1.")
        self.weight, self.hardest, self.together = weight, hardest, together

    def forward(self, model: Network, batch: Batch) -> Loss:
        known, unknown = logits_of_both(model, batch.x, outliers_of("oe", batch), self.together)
        risk = example_losses(known, batch).mean()
        losses = uniform_losses(unknown)
        if self.hardest < 1:
            confidence = unknown.detach().log_softmax(-1).amax(-1)
            losses = losses[confidence.topk(max(1, round(self.hardest * len(losses)))).indices]
        exposure = losses.mean()
        return Loss(risk + self.weight * exposure, {"risk": risk, "exposure": exposure})


@objectives.register(
    "energy-oe",
    summary="Energy-bounded learning: low energies of examples, high ones of known outliers",
    paper="Liu et al. 2020, arXiv 2010.03759",
    search={
        "weight": ("log", 1e-2, 1.0),
        "bound_in": ("choice", [-13.0, -15.0, -19.0, -23.0, -27.0]),
        "bound_out": ("choice", [-3.0, -5.0, -6.0]),
    },
)
class EnergyOE(Objective):
    """Cross-entropy + weight * (mean max(0, E(x) - bound_in)^2 + mean max(0, bound_out - E(o))^2), E the `energy`.

    bound_in   energies of examples above it cost; below `bound_out`
    bound_out  energies of outliers below it cost
    Defaults are those of MixOE's comparisons; the paper fine-tunes trained networks, with -23 and -5 on CIFAR-10
    and -27 and -5 on CIFAR-100. From scratch so low a bound costs accuracy.
    """

    needs_outliers = True

    def __init__(
        self, weight: float = 0.1, bound_in: float = -13.0, bound_out: float = -6.0, together: bool = True
    ):
        super().__init__()
        check_weights(weight)
        if not bound_in < bound_out:
            raise InputError("bound_in", f"is {bound_in}", f"Give less than bound_out, {bound_out}.")
        self.weight, self.bound_in, self.bound_out, self.together = weight, bound_in, bound_out, together

    def forward(self, model: Network, batch: Batch) -> Loss:
        known, unknown = logits_of_both(model, batch.x, outliers_of("energy-oe", batch), self.together)
        risk = example_losses(known, batch).mean()
        above = torch.relu(energy(known) - self.bound_in).square().mean()
        below = torch.relu(self.bound_out - energy(unknown)).square().mean()
        return Loss(risk + self.weight * (above + below), {"risk": risk, "above": above, "below": below})
