"""Where a feature lies among the weights of the linear head: decision boundaries, neural collapse."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import mean_feature, require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "fdbd",
    summary="Mean distance to the decision boundaries over the distance to the mean feature",
    paper="Liu & Qin 2024, arXiv 2312.11536",
)
class DecisionBoundaries(Detector):
    """Mean over the other classes c of (logit of the predicted class - logit c) / |w_predicted - w_c|, relative
    to the distance from the mean training feature (fDBD).
    """

    needs_logits = True
    mean: Tensor
    inverse_distances: Tensor

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        weight = require_head(bank)[0].double()
        if len(weight) < 2:
            raise InputError(
                "fdbd",
                "measures distances between classes, but there is one class",
                "Give two classes at least.",
            )
        apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        # equal weights have no boundary between them: the difference of their logits is constant
        inverse = torch.where(apart > 1e-6 * apart.amax(), 1 / apart, 0)
        mean = mean_feature(require_finite(bank.features, "features"))
        self.keep(bank, mean=mean.float(), inverse_distances=inverse.float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        logits = require_finite(bank.logits, "logits").float()
        spread = (require_finite(bank.features, "features").float() - self.mean).norm(dim=1).clamp(min=1e-8)
        largest, predicted = logits.max(-1)
        distances = (largest[:, None] - logits) * self.inverse_distances[predicted]
        return distances.sum(-1) / ((logits.shape[1] - 1) * spread)


@detectors.register(
    "nci",
    summary="Alignment of the centred feature with the predicted class's weight, plus its size",
    paper="Liu & Qin 2025, CVPR (neural collapse inspired), arXiv 2311.01479",
)
class NeuralCollapse(Detector):
    """(feature - mean) . w_predicted / |feature - mean| + alpha * L1 norm of the feature.

    alpha  weight of the norm, >= 0; the paper chooses it on validation data, OpenOOD starts from this one
    """

    needs_logits = True
    mean: Tensor

    def __init__(self, alpha: float = 1e-4):
        super().__init__()
        if not alpha >= 0:
            raise InputError("alpha", f"is {alpha}", "Give 0 or a small positive number such as 0.0001.")
        self.alpha = alpha

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        mean = mean_feature(require_finite(bank.features, "features"))
        self.keep(bank, mean=mean.float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        predicted, (weight, _) = require_finite(bank.logits, "logits").argmax(-1), require_head(bank)
        features = require_finite(bank.features, "features").float()
        direction = torch.nn.functional.normalize(features - self.mean, dim=1)
        return (direction * weight[predicted]).sum(-1) + self.alpha * features.abs().sum(-1)
