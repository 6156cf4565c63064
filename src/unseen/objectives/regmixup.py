"""RegMixup: mixup as a regulariser beside cross-entropy, not instead of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_weights
from unseen.objectives.mixing import (
    blend_with,
    check_alpha,
    draw_mixture,
    logits_of_both,
    soft_cross_entropy,
)
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "regmixup",
    summary="Cross-entropy of examples and of near-even mixtures of them",
    paper="Pinto et al. 2022, arXiv 2206.14502",
    search={"alpha": ("choice", [5.0, 10.0, 15.0, 20.0]), "weight": ("choice", [0.5, 1.0, 2.0])},
)
class RegMixup(Objective):
    """Cross-entropy of the examples + weight * soft cross-entropy of mixtures of random pairs.

    alpha     one lambda ~ Beta(alpha, alpha) a batch; large, so that mixtures are far from examples
    weight    the paper's eta
    together  whether examples and mixtures pass the network at once, as in the published code
    """

    def __init__(self, alpha: float = 20.0, weight: float = 1.0, together: bool = True):
        super().__init__()
        check_alpha(alpha)
        check_weights(weight)
        self.alpha, self.weight, self.together = alpha, weight, together

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.classes = classes

    def draw(self, examples: int, generator: torch.Generator) -> dict[str, Tensor]:
        return draw_mixture(self.alpha, examples, generator)

    def change(self, batch: Batch, drawn: dict[str, Tensor]) -> Batch:
        """Mixtures (B, ...) and their targets are in `auxiliary`; every part of the batch has all of them."""
        targets = class_probabilities(batch.y, self.classes, torch.float32)
        mixed, soft = blend_with(batch.x, targets, **drawn)
        return replace(batch, auxiliary={"x": mixed, "y": soft})  # type: ignore[dict-item]

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not isinstance(batch.auxiliary, dict):
            raise InputError("objective 'regmixup'", "got a batch without mixtures", "Call prepare first.")
        clean, mixed = logits_of_both(model, batch.x, batch.auxiliary["x"], self.together)
        risk = example_losses(clean, batch).mean()
        mixture = soft_cross_entropy(mixed, batch.auxiliary["y"].to(mixed.dtype)).mean()
        return Loss(risk + self.weight * mixture, {"risk": risk, "mixture": mixture})
