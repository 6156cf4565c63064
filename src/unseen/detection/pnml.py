"""Predictive normalized maximum likelihood: the regret of the linear head for an input, in closed form."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from unseen.detection.bank_parts import require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.detection.mahalanobis import BLOCK, whitening
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "pnml",
    summary="Minus the regret of the single-layer pNML learner",
    paper="Bibas et al. 2021, arXiv 2110.09246",
)
class PNML(Detector):
    """Minus log of the sum over classes of p / (p + (1 - p) p^s), in nats, from -log(classes) to 0.

    p is the softmax of the head at the feature of unit length, s = r / (1 + r) with r = x' (X'X)^-1 x: how little
    of the input's direction the training features X (of unit length, too) hold.

    shrinkage  added to the diagonal of X'X, relative to its mean: directions that no training feature has get
               s = 1, as in the paper's case of an input outside their span
    """

    needs_logits = True
    transform: Tensor

    def __init__(self, shrinkage: float = 1e-6):
        super().__init__()
        self.shrinkage = shrinkage

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features = require_finite(bank.features, "features")
        size = features.shape[1]
        gram = features.new_zeros(size, size, dtype=torch.float64)
        for rows in features.split(BLOCK):
            unit = normalize(rows.double(), dim=1)
            gram.addmm_(unit.T, unit)
        self.keep(bank, transform=whitening(gram, self.shrinkage).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        unit = normalize(require_finite(bank.features, "features").float(), dim=1)
        log_p = torch.log_softmax(linear(unit, *require_head(bank)), -1)
        rare = (unit @ self.transform).square().sum(1, keepdim=True)
        s = rare / (1 + rare)
        # p / (p + (1 - p) p^s) - p, whose sum is that of the paper minus 1, without the digits 1 would cost
        others = -torch.expm1(log_p)
        excess = others * -torch.expm1(s * log_p) / (1 + others * torch.exp((s - 1) * log_p))
        return -torch.log1p(excess.sum(-1))
