"""What contrastive objectives share: two views, a projection onto the unit sphere, and a probe for predictions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.views import two_views
from unseen.shifts import Batch
from unseen.shifts.batch import map_tensors


class TwoViews(Objective):
    """A loss of unit vectors z (B, 2, D), the projections of two views of each example; subclasses define
    `contrast(z, batch)`.

    The featurizer and a projector of two layers learn from that loss. The network's head is a linear probe beside
    it: cross-entropy, with a gradient that stops at the features. So validation tells how good the features are
    while they learn, and detectors read the features that enter the head, as the papers do.

    projection              D, size of the projections
    crop, flip, corruption  how views differ (`unseen.objectives.views.two_views`); flip=False for digits and letters
    """

    several_views = True
    needs_features = True

    def __init__(self, projection: int = 128, crop: float = 0.5, flip: bool = True, corruption: float = 0.3):
        super().__init__()
        if projection < 1:
            raise InputError("projection", f"is {projection}", "Give a whole number from 1, such as 128.")
        if not 0 < crop <= 1:
            raise InputError("crop", f"is {crop}", "Give a share of the area above 0, at most 1.")
        if not 0 <= corruption < 1:
            raise InputError("corruption", f"is {corruption}", "Give a share from 0 to below 1.")
        self.projection, self.crop, self.flip, self.corruption = projection, crop, flip, corruption

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.projector = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, self.projection)
        )

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Inputs (B, ...) to (B, 2, ...)."""
        options = {"crop": self.crop, "flip": self.flip, "corruption": self.corruption}
        return replace(batch, x=two_views(batch.x, generator, **options))  # type: ignore[arg-type]

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(map_tensors(lambda tensor: tensor.flatten(0, 1), batch.x))
        projected = full_precision(self.projector(features))
        z = nn.functional.normalize(projected, dim=1).unflatten(0, (-1, 2))
        with torch.autocast(z.device.type, enabled=False):  # exponentials of cosines over small temperatures
            loss = self.contrast(z, batch)
        logits = model.head(features.detach()).unflatten(0, (-1, 2))
        probe = (example_losses(logits[:, 0], batch) + example_losses(logits[:, 1], batch)).mean() / 2
        return Loss(loss.total + probe, {**loss.parts, "probe": probe})

    def contrast(self, z: Tensor, batch: Batch) -> Loss:
        raise TypeError(f"{type(self).__name__} must define contrast(z, batch) -> Loss")
