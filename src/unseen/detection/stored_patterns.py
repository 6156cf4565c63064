"""Simplified Hopfield energy: inner product with the stored pattern of the predicted class."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from unseen.detection.bank_parts import class_means, require_labels, well_classified
from unseen.detection.base import Detector, require_finite
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "she",
    summary="Inner product with the mean training feature of the predicted class",
    paper="Zhang et al. 2023, ICLR (simplified Hopfield energy)",
)
class StoredPatterns(Detector):
    """The pattern of a class is the mean feature of its correctly classified training examples.

    A class of which no example is classified correctly keeps the mean of all its examples.
    """

    needs_logits = True
    patterns: Tensor

    def fit(self, bank: Bank) -> Self:
        features = require_finite(bank.features, "features")
        require_finite(bank.logits, "logits")
        labels, chosen = require_labels(bank), well_classified(bank)
        self.keep(bank, patterns=class_means(features[chosen], labels[chosen], bank.logits.shape[1]).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        predicted = require_finite(bank.logits, "logits").argmax(-1)
        return (require_finite(bank.features, "features").float() * self.patterns[predicted]).sum(-1)
