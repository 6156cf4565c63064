"""What of a feature lies outside the principal subspace of the training features."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.detection.mahalanobis import BLOCK
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "residual",
    summary="Norm of a feature outside the principal subspace",
    paper="Wang et al. 2022, arXiv 2203.10807",
)
class Residual(Detector):
    """Minus the norm of the feature's part in the directions of least variance around the origin of the head.

    dimensions  of the principal subspace; None is the paper's rule: 1000 of 2048 or more, 512 of 768 or more,
                else half of the features' dimensions
    The origin is the feature that the head maps to zero logits (-pinv(W) b, the nearest such one).
    """

    needs_logits = True
    origin: Tensor
    outside: Tensor

    def __init__(self, dimensions: int | None = None):
        super().__init__()
        if dimensions is not None and dimensions < 1:
            raise InputError("dimensions", f"is {dimensions}", "Give a number of dimensions, 1 or more.")
        self.dimensions = dimensions

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features, (weight, bias) = require_finite(bank.features, "features"), require_head(bank)
        size = features.shape[1]
        kept = self.dimensions or (1000 if size >= 2048 else 512 if size >= 768 else size // 2)
        if kept >= size:
            raise InputError(
                "dimensions",
                f"is {kept} with features of size {size}: nothing lies outside",
                f"Give less than {size}.",
            )
        # a head has a direction that softmax does not see and training leaves near zero: it is no inverse's
        origin = -torch.linalg.pinv(weight.double(), rtol=1e-6 * max(weight.shape)) @ bias.double()
        scatter = origin.new_zeros(size, size)
        for rows in features.split(BLOCK):
            centred = rows.double() - origin
            scatter.addmm_(centred.T, centred)
        directions = torch.linalg.eigh(scatter / len(features)).eigenvectors
        self.keep(bank, origin=origin.float(), outside=directions[:, : size - kept].float().contiguous())
        return self

    def residual(self, features: Tensor) -> Tensor:
        """(N,) norm of the part outside the principal subspace."""
        return ((features.float() - self.origin) @ self.outside).norm(dim=1)

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        return -self.residual(require_finite(bank.features, "features"))


@detectors.register(
    "vim",
    summary="Log-odds of the classes against a virtual logit, the scaled residual",
    paper="Wang et al. 2022, arXiv 2203.10807",
)
class VirtualLogit(Residual):
    """Log-sum-exp of the logits minus alpha times the residual (see `Residual`).

    alpha makes the mean residual of the training features as large as their mean largest logit.
    """

    alpha: Tensor

    def fit(self, bank: Bank) -> Self:
        super().fit(bank)
        largest = require_finite(bank.logits, "logits").float().amax(1).mean()
        residual = self.residual(bank.features).mean()
        # features of few dimensions have no residual but rounding; logits may all be negative: they mean the
        # same with any constant added
        size = (bank.features.float() - self.origin).norm(dim=1).mean()
        self.keep(bank, alpha=largest.abs() / torch.maximum(residual, 1e-4 * size).clamp(min=1e-12))
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        logits = require_finite(bank.logits, "logits").float()
        residual = self.residual(require_finite(bank.features, "features"))
        return logits.logsumexp(-1) - self.alpha * residual
