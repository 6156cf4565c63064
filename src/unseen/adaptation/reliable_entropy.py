"""What EATA, SAR and DeYO share: entropy is minimised on the examples of which the network is sure enough."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn

from unseen.adaptation.base import GradientAdaptation
from unseen.adaptation.normalisation import normalisation_parameters

MOMENTUM = 0.9
"""Of moving averages over batches (EATA's predictions, SAR's loss), in the authors' code of both."""


def mean_over(values: Tensor, chosen: Tensor) -> Tensor | None:
    """Mean of values (B,) where chosen (B,); None where nothing is, so that the batch teaches nothing."""
    return values[chosen].mean() if chosen.any() else None


Average = TypeVar("Average", float, Tensor)


def moving_average(average: Average | None, new: Average) -> Average:
    """The average with the new value in it; at first the value itself."""
    return new if average is None else MOMENTUM * average + (1 - MOMENTUM) * new


class ReliableEntropy(GradientAdaptation):
    """Adaptation by SGD on examples whose entropy is below a threshold.

    entropy_share  the threshold as a share of ln C, the largest entropy
    skip           dotted names of modules whose normalisation stays as it is
    The others are those of `GradientAdaptation`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float,
        momentum: float,
        entropy_share: float,
        skip: tuple[str, ...] = (),
        steps: int = 1,
        prior: float = 0.0,
        seed: int = 0,
    ):
        self.entropy_share, self.skip = entropy_share, skip
        super().__init__(
            network,
            learning_rate=learning_rate,
            optimizer="sgd",
            momentum=momentum,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return normalisation_parameters(self.network, self.skip)

    def threshold(self, logits: Tensor) -> float:
        """Entropy (nats) from which an example is unreliable, for logits (B, C)."""
        return self.entropy_share * math.log(logits.shape[1])
