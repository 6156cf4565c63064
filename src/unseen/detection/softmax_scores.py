"""Scores of the softmax beyond its largest entry: calibrated, entropies."""

from __future__ import annotations

import warnings
from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import require_labels
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError, UnseenWarning
from unseen.measures.calibration import fit_temperature
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "temperature-scaling",
    summary="Largest softmax probability at the temperature of least NLL",
    paper="Guo et al. 2017, arXiv 1706.04599",
)
class TemperatureScaling(Detector):
    """Fits the temperature on the outputs that `fit` is given: held-out ones calibrate, those that the network
    was trained on give a temperature that is too low. Where they are separated perfectly (or no better than
    chance), no finite temperature is best and it stays 1: the score is then that of `msp`.
    """

    needs_logits = True
    temperature: Tensor

    def fit(self, bank: Bank) -> Self:
        logits, labels = require_finite(bank.logits, "logits"), require_labels(bank)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnseenWarning)
            try:
                temperature = fit_temperature(logits.detach().double().cpu().numpy(), labels.cpu().numpy())
            except UnseenWarning:
                temperature = 1.0
        self.keep(bank, temperature=torch.tensor(temperature, dtype=torch.float32, device=logits.device))
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        logits = require_finite(bank.logits, "logits").float()
        return torch.softmax(logits / self.temperature, -1).amax(-1)


@detectors.register(
    "entropy",
    summary="Minus the entropy of the softmax, in nats",
    paper="Shannon 1948; Hendrycks & Gimpel 2017, arXiv 1610.02136",
)
class Entropy(Detector):
    needs_logits = True

    def score(self, bank: Bank) -> Tensor:
        log_p = torch.log_softmax(require_finite(bank.logits, "logits").float(), -1)
        return (log_p.exp() * log_p).sum(-1)


@detectors.register(
    "gen",
    summary="Minus the generalized entropy of the largest probabilities",
    paper="Liu et al. 2023, CVPR",
)
class GeneralizedEntropy(Detector):
    """Minus the sum of (p (1 - p)) ** gamma over the `top` largest probabilities.

    gamma  exponent in (0, 1): the smaller, the more weight small probabilities have
    top    how many probabilities count; None takes a tenth of the classes, at least 10 (100 of 1000, as in the paper)
    """

    needs_logits = True

    def __init__(self, gamma: float = 0.1, top: int | None = None):
        super().__init__()
        if not 0 < gamma < 1:
            raise InputError("gamma", f"is {gamma}", "Give a number between 0 and 1, such as 0.1.")
        if top is not None and top < 1:
            raise InputError("top", f"is {top}", "Give a number of probabilities, 1 or more.")
        self.gamma, self.top = gamma, top

    def score(self, bank: Bank) -> Tensor:
        log_p = torch.log_softmax(require_finite(bank.logits, "logits").float(), -1)
        largest = log_p.argmax(-1, keepdim=True)
        # ln(1 - p) of the largest is the sum of the others: 1 - p itself rounds to zero for a confident network
        others = log_p.scatter(-1, largest, -torch.inf).logsumexp(-1, keepdim=True)
        log_rest = torch.log1p(-log_p.exp()).scatter(-1, largest, others)
        each = torch.exp(self.gamma * (log_p + log_rest))
        top = self.top or max(10, log_p.shape[1] // 10)
        if top < log_p.shape[1]:
            each = each.gather(-1, log_p.topk(top, sorted=False).indices)
        return -each.sum(-1)
