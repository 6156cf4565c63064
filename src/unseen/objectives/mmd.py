"""MMD: equal distributions of the features in every domain, compared in the space of a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.domain_match import pairwise_factor
from unseen.objectives.gaussian_sums import gaussian_sum
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.penalty import PenaltySchedule
from unseen.objectives.shares import domain_shares
from unseen.registry import objectives
from unseen.shifts import Batch

GAMMAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse widths of DomainBed's kernel on features."""


def gaussian_gram(points: Tensor, gammas: Sequence[float] = GAMMAS) -> Tensor:
    """(B, B) matrix of sum_g exp(-g |x_i - x_j|^2) for points (B, F)."""
    centred = points - points.mean(0).detach()  # distances stay, but cancel less: gamma 1000 magnifies errors
    products = centred @ centred.mT
    squares = products.diagonal()
    distances = (squares.unsqueeze(1) + squares - 2 * products).clamp(min=0)
    distances = distances * (1 - torch.eye(len(points), dtype=points.dtype, device=points.device))
    return gaussian_sum(distances, gammas)


def squared_mmd(gram: Tensor, difference: Tensor) -> Tensor:
    """|sum_b difference_b phi(x_b)|^2 in the kernel's space, from its Gram matrix (B, B).

    difference  (B,), or (K, B) for the sum over K of them; `share_1 - share_2` gives the biased MMD^2 of two
                samples (Gretton et al. 2012, equation 5)
    """
    rows = difference if difference.dim() == 2 else difference.unsqueeze(0)
    return ((rows.mT @ rows) * gram).sum()


def mmd_penalty(
    features: Tensor,
    domain: Tensor,
    domains: int,
    *,
    gammas: Sequence[float] = GAMMAS,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean MMD^2 over pairs of present domains; zero if there is one. features (B, F), domain (B,).

    As for any mean over pairs of squared distances, no pair is formed: it is the spread of the domains' mean
    embeddings around their mean, so one Gram matrix and one matrix of weights serve all domains.
    """
    features = full_precision(features)
    shares, present = domain_shares(domain, domains, weight, features.dtype)
    count = present.sum().clamp(min=1)
    spread = (shares - shares.sum(0) / count) * present.unsqueeze(1)
    return squared_mmd(gaussian_gram(features, gammas), spread) / count * pairwise_factor(present)


def check_gammas(gammas: Sequence[float]) -> tuple[float, ...]:
    if not gammas or not all(gamma > 0 for gamma in gammas):
        raise InputError("gammas", f"are {tuple(gammas)}", "Give one or more positive inverse widths.")
    return tuple(gammas)


@objectives.register(
    "mmd",
    summary="Equal distributions of the features, by maximum mean discrepancy",
    paper="Li et al. 2018, CVPR (MMD-AAE); MMD: Gretton et al. 2012, JMLR",
    search={"penalty_weight": ("log", 1e-1, 1e1)},
)
class MMD(Objective):
    """Mean of the domains' risks + weight * `mmd_penalty` on the features; defaults are DomainBed's."""

    needs_domains = True
    carries_weights = True
    needs_features = True

    def __init__(self, penalty_weight: float = 1.0, gammas: Sequence[float] = GAMMAS):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight)
        self.gammas = check_gammas(gammas)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        losses = example_losses(model.head(features), batch)
        risk = mean_over_present(*domain_means(losses, batch))
        with torch.autocast(features.device.type, enabled=False):
            penalty = mmd_penalty(
                features, batch.domain, batch.domains, gammas=self.gammas, weight=batch.weight
            )
        return self.schedule.loss(risk, penalty, batch.step)
