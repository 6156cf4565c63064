"""Norm of the gradient that an input would send to the linear head, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "gradnorm",
    summary="L1 norm of the head's gradient of the KL divergence from uniform to softmax",
    paper="Huang et al. 2021, arXiv 2110.00218",
)
class GradientNorm(Detector):
    """The gradient with respect to the head's weight is (p - u) feature' / T: its L1 norm is a product.

    temperature  T > 0 of the softmax
    """

    needs_logits = True

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number such as 1.")
        self.temperature = temperature

    def score(self, bank: Bank) -> Tensor:
        p = torch.softmax(require_finite(bank.logits, "logits").float() / self.temperature, -1)
        size = require_finite(bank.features, "features").float().abs().sum(-1)
        return (p - 1 / p.shape[-1]).abs().sum(-1) * size / self.temperature
