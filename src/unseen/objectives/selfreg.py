"""SelfReg: examples of one class have alike logits and features, whichever domain they are from."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.targets import likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


def partners_within_class(labels: Tensor, order: Tensor) -> Tensor:
    """(B,) a permutation that keeps classes: the i-th example of a class, counted in the batch, is paired with
    the i-th of that class in `order` (a permutation of the batch). labels (B,)."""
    first = torch.argsort(labels, stable=True)
    second = order[torch.argsort(labels[order], stable=True)]
    return torch.zeros_like(first).scatter(0, first, second)


def perturbation(features: int) -> nn.Sequential:
    """The class-specific domain perturbation layer: a projection of the features.

    Its BatchNorm keeps no running statistics: it is used in training alone. Biases that a following BatchNorm
    would cancel are left out.
    """
    width = 2 * features

    def normalised(inputs: int, outputs: int) -> list[nn.Module]:
        linear = nn.Linear(inputs, outputs, bias=False)
        return [linear, nn.BatchNorm1d(outputs, track_running_stats=False)]

    return nn.Sequential(
        *normalised(features, width), nn.ReLU(),
        *normalised(width, width), nn.ReLU(),
        *normalised(width, features),
    )  # fmt: skip


@objectives.register(
    "selfreg",
    summary="Self-supervised contrastive regularisation: alike outputs within a class across domains",
    paper="Kim et al. 2021, arXiv 2104.09841",
    search={"penalty_weight": ("log", 1e-1, 1e1), "feature_weight": ("uniform", 0.1, 1.0)},
)
class SelfReg(Objective):
    """Mean loss over all examples + min(loss, 1) * penalty_weight * (l * individual + (1 - l) * heterogeneous).

    individual      mean squared difference to a random partner of the class, of the logits and, times
                    `feature_weight`, of the features to the partner's perturbed ones
    heterogeneous   the same to a mixture, by l and 1 - l, of two such partners
    partner_seed    l ~ Beta(1/2, 1/2) and the partners are a function of it and of the training step

    Defaults are those of the authors' code. Its stochastic weight averaging is `averaging=swa` here.
    """

    def __init__(self, penalty_weight: float = 1.0, feature_weight: float = 0.3, partner_seed: int = 0):
        super().__init__()
        for name, value in (("penalty_weight", penalty_weight), ("feature_weight", feature_weight)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(name, f"is {value}", "Give a finite number from 0.")
        self.penalty_weight, self.feature_weight = penalty_weight, feature_weight
        self.partner_seed = partner_seed

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.perturb = perturbation(features)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        logits = model.head(features)
        losses = example_losses(logits, batch).mean()
        if len(batch) == 1:  # has no partner, and BatchNorm no variance
            return Loss(losses, {"risk": losses, "penalty": 0 * losses})
        random = np.random.default_rng(derive_seed(self.partner_seed, batch.step))
        share = float(random.beta(0.5, 0.5))
        labels = likeliest_class(batch.y)
        one, two = (
            partners_within_class(labels, torch.from_numpy(random.permutation(len(batch))).to(labels.device))
            for _ in range(2)
        )

        def penalty(outputs: Tensor, compared: Tensor) -> Tensor:
            outputs, compared = full_precision(outputs), full_precision(compared)
            individual = (outputs - compared[one]).square().mean()
            mixture = share * compared[one] + (1 - share) * compared[two]
            return share * individual + (1 - share) * (outputs - mixture).square().mean()

        total = penalty(logits, logits) + self.feature_weight * penalty(features, self.perturb(features))
        scale = self.penalty_weight * losses.detach().clamp(max=1)
        return Loss(losses + scale * total, {"risk": losses, "penalty": total})
