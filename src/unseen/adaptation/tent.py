"""Tent: fully test-time adaptation by entropy minimisation (Wang et al. 2021)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from unseen.adaptation.base import GradientAdaptation
from unseen.adaptation.output_losses import softmax_entropy
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


@adaptation.register(
    "tent",
    summary="Scales and shifts of normalisation learn to make predictions sure",
    paper="Wang et al. 2021, arXiv 2006.10726",
    search={"learning_rate": ("log", 1e-5, 1e-2), "prior": ("choice", [0.0, 16.0, 64.0])},
)
class Tent(GradientAdaptation):
    """Descends the mean entropy of the batch. Defaults are the paper's for CIFAR-10-C; for ImageNet it
    has SGD with 0.00025. Without reset it may end in one class for all inputs."""

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 1e-3,
        optimizer: Literal["sgd", "adam"] = "adam",
        momentum: float = 0.9,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        super().__init__(
            network,
            learning_rate=learning_rate,
            optimizer=optimizer,
            momentum=momentum,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        return logits, softmax_entropy(logits).mean()
