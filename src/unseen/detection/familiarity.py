"""A fitted detector with the threshold below which a deployed model abstains."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from torch import Tensor, nn

from unseen.detection.base import Detector
from unseen.measures.coverage import threshold_at_coverage
from unseen.networks import Bank
from unseen.registry import Spec, detectors


class Familiarity(nn.Module):
    """`score(bank)` says how familiar inputs are, `accepts(bank)` whether they are familiar enough.

    threshold  lowest accepted score
    coverage   share of in-distribution validation examples that the threshold accepts, in (0, 1]
    """

    def __init__(self, spec: Spec, detector: Detector, threshold: float, coverage: float):
        super().__init__()
        self.spec, self.detector, self.threshold, self.coverage = spec, detector, threshold, coverage

    @classmethod
    def fit(cls, spec: str | Spec, train: Bank, validation: Bank, coverage: float = 0.95) -> Self:
        """Fit the named detector on training outputs, its threshold on ID validation outputs."""
        spec = Spec.of(spec)
        detector = detectors.build(spec).fit(train)
        return cls(spec, detector, threshold_at_coverage(detector.score(validation), coverage), coverage)

    def score(self, bank: Bank) -> Tensor:
        """(N,) float32 on the bank's device, wherever the detector itself has been moved to."""
        own = next(self.detector.buffers(), bank.logits).device
        layers = {name: value.to(own) for name, value in bank.layers.items()}
        moved = replace(bank, features=bank.features.to(own), logits=bank.logits.to(own), layers=layers)
        return self.detector.score(moved).to(bank.logits.device)

    def accepts(self, bank: Bank) -> Tensor:
        """(N,) bool."""
        return self.score(bank) >= self.threshold
