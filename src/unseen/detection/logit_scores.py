"""Scores that need nothing but the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "msp", summary="Largest softmax probability", paper="Hendrycks & Gimpel 2017, arXiv 1610.02136"
)
class MaxSoftmax(Detector):
    needs_logits = True

    def score(self, bank: Bank) -> Tensor:
        return torch.softmax(require_finite(bank.logits, "logits").float(), -1).amax(-1)


@detectors.register("max-logit", summary="Largest logit", paper="Hendrycks et al. 2022, arXiv 1911.11132")
class MaxLogit(Detector):
    needs_logits = True

    def score(self, bank: Bank) -> Tensor:
        return require_finite(bank.logits, "logits").float().amax(-1)


@detectors.register(
    "energy",
    summary="T log-sum-exp of the logits over T (negative energy)",
    paper="Liu et al. 2020, arXiv 2010.03759",
)
class Energy(Detector):
    needs_logits = True

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number such as 1.")
        self.temperature = temperature

    def score(self, bank: Bank) -> Tensor:
        logits = require_finite(bank.logits, "logits").float()
        return self.temperature * torch.logsumexp(logits / self.temperature, -1)
