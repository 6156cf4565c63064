"""Transfer: every head near the present one has alike risks in all domains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses
from unseen.objectives.head_statistics import full_precision, head_statistics
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch


def extremes(risks: Tensor, present: Tensor) -> Tensor:
    """(D,) +1 at the highest and -1 at the lowest of the present risks; zero if they are one domain's."""
    infinite = torch.full_like(risks, torch.inf)
    each = torch.arange(len(risks), device=risks.device)
    highest = torch.where(present > 0, risks, -infinite).argmax()
    lowest = torch.where(present > 0, risks, infinite).argmin()
    return (each == highest).to(risks.dtype) - (each == lowest).to(risks.dtype)


def adversarial_head(
    features: Tensor,
    head: Tensor,
    targets: Tensor,
    domain: Tensor,
    domains: int,
    *,
    radius: float,
    steps: int,
    rate: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Head (C, F+1), its last column the bias, that widens the gap between the highest and the lowest risk.

    Projected gradient ascent: `steps` of size `rate`, each back onto the ball of `radius` around `head`
    (Algorithm 1). Gradients of a linear head are closed forms. Nothing here carries a gradient.
    """
    features, centre = features.detach(), head.detach()
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    found = centre
    for _ in range(steps):
        logits = inputs @ found.mT
        statistics = head_statistics(
            features,
            logits,
            targets,
            domain,
            domains,
            order=["loss", "gradient"],
            weight=weight,
            pooled=False,
        )
        signs = extremes(statistics.values["loss"], statistics.rows.present)
        moved = found + rate * torch.einsum("k,kcf->cf", signs, statistics.values["gradient"]) - centre
        found = centre + moved * (radius / moved.norm().clamp(min=radius))
    return found


@objectives.register(
    "transfer",
    summary="Transferability: alike risks in all domains for every head near the present one",
    paper="Zhang et al. 2021, arXiv 2106.03632",
    search={
        "penalty_weight": ("log", 1e-2, 1e1),
        "radius": ("uniform", 0.1, 3.0),
        "steps": ("choice", [1, 2, 5]),
        "rate": ("log", 10**-4.5, 10**-2.5),
    },
)
class Transfer(Objective):
    """Mean loss over all examples + weight * (highest - lowest risk of a domain) at `adversarial_head`.

    The adversarial head is a constant for the gradient, which reaches the features alone (Danskin's theorem).
    Defaults are DomainBed's; see `adversarial_head` for radius, steps and rate. There, the risk and the gap
    take turns in two updates, and the adversary of the previous batch is used; here it is that of this batch.
    """

    needs_domains = True
    carries_weights = True
    needs_features = True

    def __init__(self, penalty_weight: float = 1.0, radius: float = 2.0, steps: int = 10, rate: float = 1e-3):
        super().__init__()
        if not (radius > 0 and rate > 0 and steps >= 0):
            raise InputError(
                "radius, rate or steps",
                f"are {radius}, {rate} and {steps}",
                "Give a positive radius and rate, and steps from 0.",
            )
        self.schedule = PenaltySchedule(penalty_weight)
        self.radius, self.steps, self.rate = radius, steps, rate

    def forward(self, model: Network, batch: Batch) -> Loss:
        head = model.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise InputError(
                "head",
                f"is {type(head).__name__}, but Transfer has closed forms",
                "Use a linear head with a bias.",
            )
        features = model.featurizer(batch.x)
        risk = example_losses(head(features), batch).mean()
        with torch.autocast(features.device.type, enabled=False):
            wide = full_precision(features)
            start = torch.cat([head.weight, head.bias.unsqueeze(1)], 1).to(wide.dtype)
            worst = adversarial_head(
                wide, start, batch.y, batch.domain, batch.domains,
                radius=self.radius, steps=self.steps, rate=self.rate, weight=batch.weight,
            )  # fmt: skip
            logits = nn.functional.linear(wide, worst[:, :-1], worst[:, -1])
            risks, present = domain_means(example_losses(logits, batch), batch)
            gap = risks @ extremes(risks.detach(), present)
        return self.schedule.loss(risk, gap, batch.step)
