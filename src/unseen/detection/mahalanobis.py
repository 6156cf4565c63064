"""Mahalanobis distances of features to class means, whitened once and scored by one matrix product."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import mean_feature
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 4096
"""Rows that are held in float64 at a time."""


def class_statistics(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class means (C, D), tied covariance (D, D) and total covariance (D, D), all float64.

    One Gram matrix serves both covariances: the within-class scatter is the total scatter minus the scatter
    of the class means. Features are centred first, so that the subtraction loses no digits.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            "detector's training outputs",
            f"have labels from {int(labels.min())} to {int(labels.max())}, but logits of {classes} classes",
            f"Number the classes from 0 to {classes - 1}.",
        )
    counts = torch.bincount(labels, minlength=classes).double()
    if (counts == 0).any():
        missing = (counts == 0).nonzero().squeeze(1).tolist()
        raise InputError(
            "detector's training outputs",
            f"lack class number(s) {missing}",
            "Fit on examples of every class.",
        )
    size = features.shape[1]
    sums = features.new_zeros(classes, size, dtype=torch.float64)
    for rows, numbers in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
        sums.index_add_(0, numbers, rows.double())
    centre = sums.sum(0) / len(features)
    means = sums / counts[:, None] - centre
    total = sums.new_zeros(size, size)
    for rows in features.split(BLOCK):
        centred = rows.double() - centre
        total.addmm_(centred.T, centred)
    within = total - means.T @ (means * counts[:, None])
    return means + centre, within / len(features), total / len(features)


def whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """W (D, D) with W' (covariance + shrinkage * mean variance * I) W = I: distances become Euclidean."""
    ridge = shrinkage * covariance.diagonal().mean().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(covariance + torch.diag(ridge.expand(len(covariance))))
    return vectors * values.clamp(min=ridge).rsqrt()


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """(N, C) squared Euclidean distances by one matrix product, in float64 (where the device has it).

    Classes that a network tells apart well are far apart in units of their spread: float32 would lose the
    distance to the nearest among the squares of those to the origin.
    """
    precise = torch.float32 if points.device.type == "mps" else torch.float64
    points, centres = points.to(precise), centres.to(precise)
    cross = points @ centres.T
    return (points.square().sum(1, keepdim=True) - 2 * cross + centres.square().sum(1)).clamp(min=0)


@detectors.register(
    "mahalanobis",
    summary="Distance to the nearest class mean under the tied covariance",
    paper="Lee et al. 2018, arXiv 1807.03888",
)
class Mahalanobis(Detector):
    """Minus the smallest squared distance; `shrinkage` is relative to the mean variance of a feature."""

    transform: Tensor
    centre: Tensor
    means: Tensor

    def __init__(self, shrinkage: float = 1e-4):
        super().__init__()
        self.shrinkage = shrinkage

    def fit(self, bank: Bank) -> Self:
        features = require_finite(bank.features, "features")
        means, within, _ = class_statistics(features, _labels(bank), bank.logits.shape[1])
        transform, centre = whitening(within, self.shrinkage), means.mean(0)
        self.keep(
            bank,
            transform=transform.float(),
            centre=centre.float(),
            means=((means - centre) @ transform).float(),
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        points = (require_finite(bank.features, "features").float() - self.centre) @ self.transform
        return -squared_distances(points, self.means).amin(1).float()


@detectors.register(
    "relative-mahalanobis",
    summary="Mahalanobis distance to the nearest class minus the distance to all data",
    paper="Ren et al. 2021, arXiv 2106.09022",
)
class RelativeMahalanobis(Detector):
    """Minus the smallest of (distance to class c - distance to the Gaussian of all features)."""

    transform: Tensor
    centre: Tensor
    means: Tensor
    background: Tensor

    def __init__(self, shrinkage: float = 1e-4):
        super().__init__()
        self.shrinkage = shrinkage

    def fit(self, bank: Bank) -> Self:
        if bank.logits.shape[1] < 2:
            raise InputError(
                "relative-mahalanobis",
                "compares classes with all data, but there is one class",
                "Give labels of two classes at least, or choose mahalanobis.",
            )
        features = require_finite(bank.features, "features")
        means, within, total = class_statistics(features, _labels(bank), bank.logits.shape[1])
        transform, centre = whitening(within, self.shrinkage), mean_feature(features)
        self.keep(
            bank,
            transform=transform.float(),
            centre=centre.float(),
            means=((means - centre) @ transform).float(),
            background=whitening(total, self.shrinkage).float(),
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        centred = require_finite(bank.features, "features").float() - self.centre
        to_class = squared_distances(centred @ self.transform, self.means).amin(1)
        to_all = (centred @ self.background).to(to_class.dtype).square().sum(1)
        return (to_all - to_class).float()


def _labels(bank: Bank) -> Tensor:
    if bank.labels is None:
        raise InputError("detector's training outputs", "hold no labels", "Fit on a labelled bank.")
    return bank.labels
