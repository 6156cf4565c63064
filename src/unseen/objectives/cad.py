"""CAD: a contrastive bottleneck; an example's neighbours in feature space are from other domains."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.penalty import PenaltySchedule
from unseen.objectives.targets import likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch


def contrastive_domain_bottleneck(
    features: Tensor,
    domain: Tensor,
    *,
    labels: Tensor | None = None,
    temperature: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over examples of -log p(the neighbour is from another domain); a scalar from 0.

    The neighbour of i is j != i with a probability that is proportional to exp(<z_i, z_j> / temperature).
    features  (B, F)
    labels    (B,) int64: neighbours are of the same class only (the conditional bottleneck), or None
    weight    (B,) share of an example in the mean, or None
    Examples without any admissible neighbour from another domain are left out; zero if none is left.
    """
    features = full_precision(features)
    scores = features @ features.mT / temperature
    other = domain.unsqueeze(1) != domain
    admissible = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    if labels is not None:
        admissible = admissible & (labels.unsqueeze(1) == labels)
    lowest = torch.finfo(scores.dtype).min / 4  # finite: minus infinity in a whole row has no gradient
    everyone = scores.masked_fill(~admissible, lowest).logsumexp(1)
    strangers = scores.masked_fill(~(admissible & other), lowest).logsumexp(1)
    counted = (admissible & other).any(1).to(scores.dtype)
    if weight is not None:
        counted = counted * weight
    total = counted.sum()
    share = counted / torch.where(total > 0, total, torch.ones_like(total))
    return (torch.where(counted > 0, everyone - strangers, torch.zeros_like(everyone)) * share).sum()


@objectives.register(
    "cad",
    summary="Contrastive bottleneck: neighbours in feature space are from other domains",
    paper="Ruan et al. 2022, arXiv 2201.00057",
    search={
        "penalty_weight": ("choice", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2]),
        "temperature": ("choice", [0.05, 0.1]),
    },
)
@objectives.register(
    "condcad",
    summary="Contrastive bottleneck within each class: neighbours are from other domains",
    paper="Ruan et al. 2022, arXiv 2201.00057",
    preset={"conditional": True},
    search={
        "penalty_weight": ("choice", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2]),
        "temperature": ("choice", [0.05, 0.1]),
    },
)
class CAD(Objective):
    """Mean loss over all examples + weight * `contrastive_domain_bottleneck`.

    conditional  compare within the class: I(Z; D | Y) instead of I(Z; D)

    Defaults are DomainBed's, in the form it prefers: it minimises -log(1 - p(same domain)), which is more
    stable than log p(same domain). There the penalty is also multiplied by temperature / 0.07.
    """

    needs_domains = True
    needs_features = True

    def __init__(self, penalty_weight: float = 0.1, temperature: float = 0.1, conditional: bool = False):
        super().__init__()
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number.")
        self.schedule = PenaltySchedule(penalty_weight)
        self.temperature, self.conditional = temperature, conditional

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        risk = example_losses(model.head(features), batch).mean()
        with torch.autocast(features.device.type, enabled=False):
            penalty = contrastive_domain_bottleneck(
                features,
                batch.domain,
                labels=likeliest_class(batch.y) if self.conditional else None,
                temperature=self.temperature,
                weight=batch.weight,
            )
        return self.schedule.loss(risk, penalty, batch.step)
