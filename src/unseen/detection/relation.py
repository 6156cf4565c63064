"""How closely an input is related to the training inputs: alike in features and in predicted classes."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.detection.bank_parts import require_rows
from unseen.detection.base import Detector, require_finite
from unseen.detection.input_gradients import require_positive
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 1024
"""Rows that are compared with all training features at a time."""


@detectors.register(
    "relation",
    summary="Mean relation to the training inputs: cosine of features times agreement of softmax",
    paper="Kim et al. 2023, arXiv 2301.12321",
    search={"power": ("choice", [1, 2, 4, 6, 8])},
)
class Relation(Detector):
    """Mean over training inputs of (max(cosine, 0) <p, q>)^power, where that is above `cut`.

    power    sharpens the kernel
    cut      weaker relations do not count
    largest  rows kept; a larger bank is thinned evenly
    """

    needs_logits = True
    features: Tensor
    probabilities: Tensor

    def __init__(self, power: float = 1.0, cut: float = 0.03, largest: int = 10_000):
        super().__init__()
        require_positive("power", power)
        if not 0 <= cut < 1:
            raise InputError("cut", f"is {cut}", "Give a number from 0 to below 1.")
        self.power, self.cut, self.largest = power, cut, largest

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features, probabilities = _parts(bank)
        if len(features) > self.largest:
            kept = torch.linspace(0, len(features) - 1, self.largest).long()
            features, probabilities = features[kept], probabilities[kept]
        self.keep(bank, features=features, probabilities=probabilities)
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        features, probabilities = _parts(bank)
        found = []
        blocks = zip(features.split(BLOCK), probabilities.split(BLOCK), strict=True)
        for f, p in [(features, probabilities)] if torch.compiler.is_exporting() else blocks:
            relation = (f @ self.features.T).clamp(min=0) * (p @ self.probabilities.T)
            found.append(torch.where(relation > self.cut, relation, 0).pow(self.power).mean(1))
        return torch.cat(found)


def _parts(bank: Bank) -> tuple[Tensor, Tensor]:
    features = normalize(require_finite(bank.features, "features").float(), dim=1)
    return features, torch.softmax(require_finite(bank.logits, "logits").float(), 1)
