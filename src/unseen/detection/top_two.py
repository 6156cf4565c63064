"""Scores of how far the likeliest class is ahead of the second."""

from __future__ import annotations

from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


class _TopTwo(Detector):
    needs_logits = True

    def two(self, bank: Bank, of: str) -> tuple[Tensor, Tensor]:
        """(N,) the largest and the second largest logit or probability."""
        if bank.logits.shape[1] < 2:
            raise InputError(
                type(self).__name__, "compares two classes, but there is one", "Choose max-logit."
            )
        logits = require_finite(bank.logits, "logits").float()
        first, second = (logits if of == "logits" else logits.softmax(1)).topk(2, 1).values.unbind(1)
        return first, second


@detectors.register(
    "margin",
    summary="Largest softmax probability minus the second",
    paper="Scheffer et al. 2001, Active hidden Markov models",
)
class Margin(_TopTwo):
    def score(self, bank: Bank) -> Tensor:
        first, second = self.two(bank, "probabilities")
        return first - second


@detectors.register(
    "top-two-ratio",
    summary="Log of the ratio of the two largest softmax probabilities",
    paper="Ma et al. 2025, arXiv 2504.03755 (ProtoGCD's confidence)",
)
class TopTwoRatio(_TopTwo):
    """Equal to the largest logit minus the second: the ratio itself would overflow for sure classifiers."""

    def score(self, bank: Bank) -> Tensor:
        first, second = self.two(bank, "logits")
        return first - second
