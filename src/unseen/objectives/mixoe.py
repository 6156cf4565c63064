"""MixOE: examples mixed with known outliers, whose confidence is to fall linearly with the outlier's share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_weights
from unseen.objectives.mixing import (
    MIXERS,
    check_alpha,
    logits_of_both,
    mix_outliers,
    soft_cross_entropy,
)
from unseen.objectives.outlier_exposure import outliers_of
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "mixoe",
    summary="Mixture outlier exposure: examples mixed with outliers, and targets with uniform ones",
    paper="Zhang et al. 2023, WACV, pages 5531-5540",
    search={"alpha": ("log", 0.1, 10.0), "weight": ("log", 0.5, 10.0)},
)
class MixOE(Objective):
    """Cross-entropy + weight * soft cross-entropy of examples mixed with outliers by `mix_outliers`.

    mix       "mixup", "masking" or, for images, "cutmix"
    alpha     one lambda ~ Beta(alpha, alpha) a batch; the paper's are 1 for mixup and 2 for cutmix
    weight    the paper's beta. Its 5 belongs to a learning rate of 1e-3 and SGD: larger steps may diverge
    together  whether examples and mixtures pass the network at once; the published code takes two passes, whose
              batch statistics are apart
    The paper fine-tunes a trained network; the maximum softmax probability is its score, higher = familiar. At
    lambda = 0 the loss is outlier exposure, at 1 cross-entropy twice.
    """

    needs_outliers = True

    def __init__(self, mix: str = "mixup", alpha: float = 1.0, weight: float = 5.0, together: bool = False):
        super().__init__()
        if mix not in MIXERS:
            raise InputError(f"mix {mix!r}", "is not known", nearest(mix, MIXERS))
        check_alpha(alpha)
        check_weights(weight)
        self.mix, self.alpha, self.weight, self.together = mix, alpha, weight, together

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.classes = classes

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Outliers become mixtures: {"x": (B, ...), "y": (B, C)}, of which every part of the batch has all."""
        mixed, targets, _ = mix_outliers(
            batch.x,
            batch.y,
            outliers_of("mixoe", batch),
            self.classes,
            mix=self.mix,
            alpha=self.alpha,
            generator=generator,
        )
        return replace(batch, auxiliary={"x": mixed, "y": targets})  # type: ignore[dict-item]

    def forward(self, model: Network, batch: Batch) -> Loss:
        mixtures = outliers_of("mixoe", batch)
        assert isinstance(mixtures, dict)
        clean, mixed = logits_of_both(model, batch.x, mixtures["x"], self.together)
        risk = example_losses(clean, batch).mean()
        mixture = soft_cross_entropy(mixed, mixtures["y"].to(mixed.dtype)).mean()
        return Loss(risk + self.weight * mixture, {"risk": risk, "mixture": mixture})


def mixoe_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    outliers: Tensor,
    classes: int,
    generator: torch.Generator,
    **options: Any,
) -> Tensor:
    """The scalar loss of a batch, for a training loop of your own.

    model     anything that gives logits (B, classes)
    x, y      (B, ...) inputs and (B,) labels or (B, classes) probabilities
    outliers  (U, ...) with U >= B. Start their loader over when it ends: a step without any raises `InputError`
    options   of `MixOE`: mix, alpha, weight, together
    """
    objective = MixOE(**options)
    objective.setup(features=0, classes=classes, domains=1)
    batch = Batch(
        x=x,
        y=y,
        domain=torch.zeros(len(y), dtype=torch.int64, device=y.device),
        domains=1,
        auxiliary=outliers,
    )
    return objective(model, objective.prepare(batch, generator)).total
