"""OpenMax: extreme-value models of how far from its class's mean logits an example may be."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from unseen.detection.bank_parts import class_means, require_labels, well_classified
from unseen.detection.base import Detector, require_finite
from unseen.detection.mahalanobis import squared_distances
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

TRANSLATION = 1e4
"""What libMR, the authors' package, adds to distances before it fits the Weibull, to make them positive."""


def weibull(tail: NDArray[np.float64]) -> tuple[float, float]:
    """Shape and log-scale of most likelihood for the Weibull of x = 1 + (tail - min(tail)) / TRANSLATION.

    With u = ln x, the shape c is the one root of  sum(u e^cu) / sum(e^cu) - 1/c = mean(u), which is bracketed
    by the spread of u: a general optimizer stops early at the shapes of thousands that the translation brings.
    """
    logs = np.log1p((tail - tail.min()) / TRANSLATION)
    spread = logs.std()
    if spread == 0:
        raise ValueError("all distances are equal")
    relative = (logs - logs.max()) / spread  # <= 0: powers cannot overflow

    def excess(shape: float) -> float:
        weights = np.exp(shape * relative)
        return float((weights * relative).sum() / weights.sum() - 1 / shape - relative.mean())

    high = 1.0
    while excess(high) <= 0:
        high *= 2
    shape = brentq(excess, 1e-3, high, xtol=1e-12, rtol=1e-12)
    log_scale = logs.max() + spread * np.log(np.exp(shape * relative).mean()) / shape
    return shape / spread, float(log_scale)


@detectors.register(
    "openmax",
    summary="Log-odds of the known classes against the unknown one of OpenMax",
    paper="Bendale & Boult 2016, arXiv 1511.06233",
)
class OpenMax(Detector):
    """Logits are handed over to an unknown class as far as a Weibull says that they are far from their class.

    tail   largest distances, of correctly classified examples to their class mean, that the Weibull is fitted on
    alpha  how many of the largest logits are revised

    A class of which no example is classified correctly is modelled by all its examples. Of every class, two
    examples at different distances are needed.
    """

    needs_logits = True
    means: Tensor
    shape: Tensor
    log_scale: Tensor
    smallest: Tensor

    def __init__(self, tail: int = 20, alpha: int = 10):
        super().__init__()
        if tail < 2:
            raise InputError("tail", f"is {tail}", "Give 2 distances at least, such as 20.")
        if alpha < 1:
            raise InputError("alpha", f"is {alpha}", "Give 1 class at least, such as 10.")
        self.tail, self.alpha = tail, alpha

    def fit(self, bank: Bank) -> Self:
        logits = require_finite(bank.logits, "logits").double()
        labels, chosen = require_labels(bank), well_classified(bank)
        logits, labels = logits[chosen], labels[chosen]
        means = class_means(logits, labels, logits.shape[1])
        distances = (logits - means[labels]).norm(dim=1).cpu().numpy()
        of_class, models = labels.cpu().numpy(), []
        for number in range(len(means)):
            own = np.sort(distances[of_class == number])[-self.tail :]
            try:
                models.append((*weibull(own), own.min()))
            except ValueError:
                raise InputError(
                    f"class {number} of the detector's training outputs",
                    f"has {len(own)} distance(s) to its mean that are all equal: no Weibull describes them",
                    "Fit on two different examples of every class.",
                ) from None
        shape, log_scale, smallest = means.new_tensor(np.array(models)).T
        self.keep(bank, means=means, shape=shape, log_scale=log_scale, smallest=smallest)
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        logits = require_finite(bank.logits, "logits").double()
        distances = squared_distances(logits, self.means).sqrt()
        logs = torch.log1p((distances - self.smallest).clamp(min=1 - TRANSLATION) / TRANSLATION)
        far = -torch.expm1(-torch.exp(self.shape * (logs - self.log_scale)))  # the Weibulls' distributions
        alpha = min(self.alpha, logits.shape[1])
        weights = torch.arange(alpha, 0, -1, dtype=logits.dtype, device=logits.device) / alpha
        top = logits.topk(alpha, -1).indices
        ranked = torch.zeros_like(logits).scatter(-1, top, weights.expand(top.shape))
        handed_over = logits * far * ranked
        return ((logits - handed_over).logsumexp(-1) - handed_over.sum(-1)).float()
