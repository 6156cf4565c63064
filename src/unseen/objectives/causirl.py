"""CausIRL: features that do not change under interventions, for which two random mixtures of domains stand."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.domain_match import discrepancy, pairwise_factor
from unseen.objectives.head_statistics import covariance_discrepancy, head_statistics
from unseen.objectives.mmd import mmd_penalty
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

DISTANCES = ("coral", "mmd")


def random_sides(domain: Tensor, domains: int, seed: int) -> Tensor:
    """(B,) 0 or 1: in each domain the first examples are side 0, a share ~ U(0, 1) that `seed` decides.

    Batches hold the examples of a domain in random order, so that the first ones are a random choice.
    """
    cuts = torch.from_numpy(np.random.default_rng(seed).random(domains)).to(domain.device, torch.float32)
    member = (domain.unsqueeze(1) == torch.arange(domains, device=domain.device)).long()
    rank = (member.cumsum(0) * member).sum(1) - 1
    return (rank >= (cuts * member.sum(0)).floor()[domain]).long()


def coral_distance(features: Tensor, side: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference of the means + that of the covariances of two sides; zero if one is empty."""
    found = head_statistics(
        features, features, side, side, 2, order=["feature_mean"], weight=weight, pooled=False
    )
    means = discrepancy(found.values["feature_mean"], found.rows.share, coordinates="mean")
    covariances = covariance_discrepancy(features, found.rows, weight)
    return pairwise_factor(found.rows.present) * (means + covariances / features.shape[1] ** 2)


@objectives.register(
    "causirl-coral",
    summary="Random mixtures of the domains have equal feature means and covariances",
    paper="Chevalley et al. 2022, arXiv 2206.11646",
    preset={"distance": "coral"},
    search={"penalty_weight": ("log", 1e-1, 1e1)},
)
@objectives.register(
    "causirl-mmd",
    summary="Random mixtures of the domains have equal distributions of the features (MMD)",
    paper="Chevalley et al. 2022, arXiv 2206.11646",
    preset={"distance": "mmd"},
    search={"penalty_weight": ("log", 1e-1, 1e1)},
)
class CausIRL(Objective):
    """Mean of the domains' risks + weight * distance between two random mixtures of domains (Algorithm 1).

    distance    "coral" or "mmd", on the features
    split_seed  the mixtures are a function of it and of the training step

    Defaults are DomainBed's.
    """

    needs_domains = True
    needs_features = True

    def __init__(
        self, distance: Literal["coral", "mmd"] = "mmd", penalty_weight: float = 1.0, split_seed: int = 0
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise InputError(f"distance {distance!r}", "is not known", f"Choose one of {DISTANCES}.")
        self.distance, self.split_seed = distance, split_seed
        self.schedule = PenaltySchedule(penalty_weight)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        losses = example_losses(model.head(features), batch)
        risk = mean_over_present(*domain_means(losses, batch))
        side = random_sides(batch.domain, batch.domains, derive_seed(self.split_seed, batch.step))
        with torch.autocast(features.device.type, enabled=False):
            if self.distance == "mmd":
                penalty = mmd_penalty(features, side, 2, weight=batch.weight)
            else:
                penalty = coral_distance(features, side, batch.weight)
        return self.schedule.loss(risk, penalty, batch.step)
