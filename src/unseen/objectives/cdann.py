"""CDANN: features from which a discriminator that knows the class cannot tell the domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.objectives.base import Loss, example_losses
from unseen.objectives.dann import DANN, reverse_gradient
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


def class_balanced_mean(values: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes in the batch of the mean of `values` (B,) over a class; targets (B, C)."""
    counts = targets.sum(0)
    there = counts > 0
    means = (values @ targets) / torch.where(there, counts, torch.ones_like(counts))
    return (means * there).sum() / there.sum()


@objectives.register(
    "cdann",
    summary="Features that hide the domain within each class from a discriminator",
    paper="Li et al. 2018, ECCV (Deep Domain Generalization via Conditional Invariant Adversarial Networks)",
    search={"strength": ("log", 1e-2, 1e1), "warmup_steps": ("choice", [0, 100, 500])},
)
class CDANN(DANN):
    """`DANN` whose discriminator sees the features plus a learned embedding of the class, and whose domain
    loss counts every class of the batch alike, so that a domain cannot be guessed from its class frequencies.
    """

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        super().setup(features=features, classes=classes, domains=domains)
        self.class_embedding = nn.Parameter(torch.randn(classes, features))

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        embedding = self.class_embedding
        targets = class_probabilities(batch.y, len(embedding), embedding.dtype)
        seen = reverse_gradient(features, self.strength_at(batch.step)) + targets @ embedding
        guess = self.discriminator(seen)
        label = example_losses(model.head(features), batch).mean()
        losses = nn.functional.cross_entropy(guess, batch.domain, reduction="none")
        domain = class_balanced_mean(losses, targets.to(losses.dtype))
        return Loss(label + domain, {"label": label, "domain": domain})
