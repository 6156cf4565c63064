"""IB-ERM and IB-IRM: among the features that predict well, those with the least variance in each domain."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.irm import irm_penalty
from unseen.objectives.penalty import PenaltySchedule
from unseen.objectives.shares import domain_shares, unbiased_factor
from unseen.registry import objectives
from unseen.shifts import Batch


def feature_variance(features: Tensor, domain: Tensor, domains: int, weight: Tensor | None = None) -> Tensor:
    """Mean over present domains and features of the unbiased variance; a single example has none.

    features (B, F), domain (B,) in [0, domains), weight (B,) or None.
    """
    features = full_precision(features)
    shares, present = domain_shares(domain, domains, weight, features.dtype)
    centred = features - (shares @ features)[domain]
    variances = (shares @ centred.square()).mean(1) * unbiased_factor(shares)
    return (variances * present).sum() / present.sum().clamp(min=1)


@objectives.register(
    "ib-erm",
    summary="Least variance of the features that still predict (information bottleneck)",
    paper="Ahuja et al. 2021, arXiv 2106.06607",
    search={"penalty_weight": ("log", 1e-1, 1e5), "warmup_steps": ("choice", [0, 50, 100, 200])},
)
@objectives.register(
    "ib-irm",
    summary="IRM on the features of least variance (information bottleneck)",
    paper="Ahuja et al. 2021, arXiv 2106.06607",
    preset={"irm_weight": 100.0},
    search={
        "penalty_weight": ("log", 1e-1, 1e5),
        "irm_weight": ("log", 1e-1, 1e5),
        "warmup_steps": ("choice", [0, 50, 100, 200]),
    },
)
class InformationBottleneck(Objective):
    """Mean of the domains' risks + penalty_weight * `feature_variance` + irm_weight * `irm_penalty`.

    irm_weight    0 for IB-ERM
    warmup_steps  updates during which the variance does not count and the weight of IRM is at most 1

    Defaults are DomainBed's, except that its two warm-ups (500 of 5000 steps each) are one, of 100 steps.
    IB-ERM makes sense with one domain, IB-IRM too, though its IRM penalty then asks little.
    """

    carries_weights = True

    def __init__(self, penalty_weight: float = 100.0, irm_weight: float = 0.0, warmup_steps: int = 100):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight, warmup_steps)
        self.irm_schedule = PenaltySchedule(irm_weight, warmup_steps, min(1.0, irm_weight))
        self.with_irm = irm_weight > 0

    @property
    def needs_features(self) -> bool:  # type: ignore[override]
        return not self.with_irm

    def resets_optimizer_at(self, step: int) -> bool:
        return self.schedule.switches_at(step) or self.irm_schedule.switches_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        logits = model.head(features)
        risk = mean_over_present(*domain_means(example_losses(logits, batch), batch))
        with torch.autocast(features.device.type, enabled=False):
            variance = feature_variance(features, batch.domain, batch.domains, batch.weight)
            loss = self.schedule.loss(risk, variance, batch.step)
            if self.with_irm:
                irm = irm_penalty(logits, batch.y, batch.domain, batch.domains, weight=batch.weight)
                loss.total = loss.total + self.irm_schedule.weight_at(batch.step) * irm
                loss.parts["irm_penalty"] = irm
        return loss
