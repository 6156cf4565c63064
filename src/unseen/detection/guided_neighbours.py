"""Energy guided by the most similar training features, themselves weighted by their energy."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.detection.bank_parts import require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 4096
"""Rows whose similarities are held at a time."""


@detectors.register(
    "nnguide",
    summary="Energy times the mean similarity to the nearest training features, weighted by their energy",
    paper="Park et al. 2023, arXiv 2309.14888",
)
class GuidedNeighbours(Detector):
    """Log-sum-exp of the logits times the mean of the k largest (cosine to a training feature * its energy).

    k        neighbours
    largest  rows kept; a larger bank is thinned evenly (the paper keeps 1 % of ImageNet)
    """

    needs_logits = True
    bank: Tensor

    def __init__(self, k: int = 10, largest: int = 10_000):
        super().__init__()
        if k < 1:
            raise InputError("k", f"is {k}", "Give a number of neighbours, 1 or more.")
        if largest < 1:
            raise InputError("largest", f"is {largest}", "Give a number of rows, 1 or more.")
        self.k, self.largest = k, largest

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features = require_finite(bank.features, "features").float()
        energy = require_finite(bank.logits, "logits").float().logsumexp(-1)
        if len(features) > self.largest:
            rows = torch.linspace(0, len(features) - 1, self.largest).long()
            features, energy = features[rows], energy[rows]
        self.keep(bank, bank=normalize(features, dim=1) * energy[:, None])
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        queries = normalize(require_finite(bank.features, "features").float(), dim=1)
        energy = require_finite(bank.logits, "logits").float().logsumexp(-1)
        # an exported graph takes any number of queries, but a loop over them would fix how many blocks there are
        parts = [queries] if torch.compiler.is_exporting() else queries.split(BLOCK)
        k = min(self.k, len(self.bank))
        return energy * torch.cat([(part @ self.bank.T).topk(k, 1).values.mean(1) for part in parts])
