"""SSD: one Gaussian for all normalised features, fitted without labels."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import named_rows, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

NO_VARIANCE = 1e-6
"""Directions with less than this share of the largest variance are left out of the inverse."""


@detectors.register(
    "ssd",
    summary="Mahalanobis distance of normalised features to the mean of all: no labels",
    paper="Sehwag et al. 2021, arXiv 2103.12051",
)
class MahalanobisSSD(Detector):
    """Minus the squared Mahalanobis distance to the global mean, for features of length one, standardised.

    With one cluster, as PALM is scored (Lu et al. 2024). Mean, deviation and covariance are those of the training
    outputs; the covariance has a pseudo-inverse, so directions in which these do not vary do not count. Features of
    norm zero, which have no direction, are refused.
    """

    centre: Tensor
    transform: Tensor

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        points = _unit(bank).double()
        centre, deviation = points.mean(0), points.std(0, correction=0)
        scale = torch.where(deviation > 1e-8, deviation, 1.0)
        standard = (points - centre) / scale
        values, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
        enough = values > NO_VARIANCE * values[-1].clamp(min=1e-12)
        whitening = vectors * torch.where(enough, values.clamp(min=1e-30).rsqrt(), 0.0)
        self.keep(bank, centre=centre.float(), transform=(whitening / scale[:, None]).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        return -((_unit(bank) - self.centre) @ self.transform).square().sum(1)


def _unit(bank: Bank) -> Tensor:
    """Features of length one. One of norm zero would be in the middle of the sphere, and so the most familiar."""
    features = require_finite(bank.features, "features").float()
    nowhere = features.norm(dim=1) == 0
    if not torch.compiler.is_exporting() and nowhere.any():
        raise InputError(
            "features",
            f"have norm zero, and so no direction, in {named_rows(nowhere)}",
            "Leave these inputs out, or choose a detector that does not normalise, such as mahalanobis.",
        )
    return torch.nn.functional.normalize(features, dim=1)
