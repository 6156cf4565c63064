"""DICE: the energy of a head that keeps only the weights which contribute most."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from unseen.detection.bank_parts import mean_feature, require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "dice",
    summary="Energy of a head whose least contributing weights are zero",
    paper="Sun & Li 2022, arXiv 2111.09805",
)
class SparseHead(Detector):
    """Log-sum-exp of the logits of the sparse head. A weight contributes itself times the mean feature.

    sparsity  share of the weights that is set to zero, in [0, 1); 0.9 on CIFAR and 0.7 on ImageNet in the paper
    """

    needs_logits = True
    kept: Tensor

    def __init__(self, sparsity: float = 0.9):
        super().__init__()
        if not 0 <= sparsity < 1:
            raise InputError("sparsity", f"is {sparsity}", "Give a share from 0 to below 1, such as 0.9.")
        self.sparsity = sparsity

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        mean = mean_feature(require_finite(bank.features, "features"))
        contribution = require_head(bank)[0].double() * mean
        threshold = np.quantile(contribution.cpu().numpy(), self.sparsity) if self.sparsity else -np.inf
        self.keep(bank, kept=contribution > threshold)
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        features = require_finite(bank.features, "features").float()
        weight, bias = require_head(bank)
        return linear(features, torch.where(self.kept, weight, 0), bias).logsumexp(-1)
