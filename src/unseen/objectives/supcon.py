"""Supervised contrastive learning: views of one class are near each other, and far from all the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.objectives.base import Loss
from unseen.objectives.targets import likeliest_class
from unseen.objectives.two_views import TwoViews
from unseen.registry import objectives
from unseen.shifts import Batch


def contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of minus the mean log-probability of their positives among all others.

    vectors (M, D), unit; labels (M,): equal ones are positives of each other. Anchors without a positive are left
    out; zero when there is none. The outer form of Khosla et al. 2020, equation 2, without the factor of
    temperatures that the published code multiplies with.
    """
    cosines = vectors @ vectors.T / temperature
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    positive = (labels[:, None] == labels) & ~own
    others = cosines.masked_fill(own, -torch.inf).logsumexp(1)
    counts = positive.sum(1)
    losses = others - (cosines * positive).sum(1) / counts.clamp(min=1)
    # a where, because the only vector of a batch has no others: minus infinity
    return torch.where(counts > 0, losses, 0.0).sum() / (counts > 0).sum().clamp(min=1)


def supcon_loss(z: Tensor, y: Tensor | None = None, temperature: float = 0.1) -> Tensor:
    """Contrastive loss of views z (B, V, D), unit vectors: positives share a label y (B,), or, without labels
    (SimCLR, Chen et al. 2020), are views of the same example."""
    if z.dim() != 3:
        raise InputError("z", f"has shape {tuple(z.shape)}", "Give (examples, views, size).")
    labels = torch.arange(len(z), device=z.device) if y is None else y
    return contrastive_loss(z.flatten(0, 1), labels.repeat_interleave(z.shape[1]), temperature)


@objectives.register(
    "supcon",
    summary="Supervised contrastive learning of two views, and a linear probe",
    paper="Khosla et al. 2020, arXiv 2004.11362",
    search={"temperature": ("log", 0.05, 0.5)},
)
@objectives.register(
    "simclr",
    summary="Contrastive learning of two views without labels, and a linear probe",
    paper="Chen et al. 2020, arXiv 2002.05709",
    preset={"supervised": False, "temperature": 0.5},
    search={"temperature": ("log", 0.05, 1.0)},
)
class SupCon(TwoViews):
    """`supcon_loss` of the projections; see `TwoViews` for the probe.

    supervised   whether examples of one class are positives; else labels reach the probe alone
    temperature  of the cosines
    """

    def __init__(
        self,
        temperature: float = 0.1,
        supervised: bool = True,
        projection: int = 128,
        crop: float = 0.5,
        flip: bool = True,
        corruption: float = 0.3,
    ):
        super().__init__(projection, crop, flip, corruption)
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 0.1.")
        self.temperature, self.supervised = temperature, supervised

    def contrast(self, z: Tensor, batch: Batch) -> Loss:
        labels = likeliest_class(batch.y) if self.supervised else None
        loss = supcon_loss(z, labels, self.temperature)
        return Loss(loss, {"contrast": loss})
