"""RDM: the losses in the worst domain are distributed as those in all domains together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.gaussian_sums import gaussian_sum
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.penalty import PenaltySchedule
from unseen.objectives.shares import domain_shares, unbiased_factor
from unseen.registry import objectives
from unseen.shifts import Batch

GAMMAS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse widths of the authors' kernel on losses."""


def risk_distribution_penalties(
    losses: Tensor, domain: Tensor, domains: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """MMD^2 between the losses of the domain with the highest mean and all losses; sum of their variances.

    losses (B,) of the examples, not multiplied by weights; domain (B,); weight (B,) or None.
    """
    shares, present = domain_shares(domain, domains, weight, losses.dtype)
    means = torch.where(present > 0, shares.detach() @ losses.detach(), -torch.inf)
    worst = (torch.arange(domains, device=losses.device) == means.argmax()).to(losses.dtype) @ shares
    overall, _ = domain_shares(torch.zeros_like(domain), 1, weight, losses.dtype)
    matching = squared_mmd_of_numbers(losses, worst - overall[0])
    rows = torch.stack([worst, overall[0]])
    deviations = losses - (rows @ losses).unsqueeze(1)
    variances = (rows * deviations.square()).sum(1) * unbiased_factor(rows)
    return matching, variances.sum()


def squared_mmd_of_numbers(values: Tensor, difference: Tensor) -> Tensor:
    """`squared_mmd` of numbers (B,) in the authors' kernel, which takes each pair once: half the exponentials.

    A pair is an example and one of the B // 2 that follow it, in a circle. If B is even, the farthest of them meet
    twice.
    """
    count, half = len(values), len(values) // 2

    def following(x: Tensor) -> Tensor:
        return torch.cat([x, x[:half]]).unfold(0, count, 1)[1:]  # (B // 2, B)

    times = torch.full((half, 1), 2.0, dtype=values.dtype, device=values.device)
    if count % 2 == 0:
        times[-1] = 1
    kernel = gaussian_sum((following(values) - values).square(), GAMMAS)
    itself = len(GAMMAS) * difference.square().sum()
    return itself + (times * following(difference) * difference * kernel).sum()


@objectives.register(
    "rdm",
    summary="Losses of the worst domain are distributed as all losses (MMD on losses)",
    paper="Nguyen et al. 2024, arXiv 2310.18598",
    search={
        "penalty_weight": ("uniform", 0.1, 10.0),
        "variance_weight": ("uniform", 0.001, 0.007),
        "warmup_steps": ("choice", [0, 50, 100, 200]),
    },
)
class RDM(Objective):
    """Mean of the domains' risks + penalty_weight * MMD^2 + variance_weight * variances, both after
    `warmup_steps` updates; see `risk_distribution_penalties`.

    The defaults are those of the authors' code for most image sets (variance_weight is 0 for TerraIncognita,
    OfficeHome and DomainNet), except that the warm-up is 1500 of 5000 steps there, here 100, and that the
    learning rate stays (there it falls to 1.5e-5 after the warm-up).
    """

    needs_domains = True
    carries_weights = True

    def __init__(self, penalty_weight: float = 5.0, variance_weight: float = 0.004, warmup_steps: int = 100):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight, warmup_steps)
        self.variance_schedule = PenaltySchedule(variance_weight, warmup_steps)

    def resets_optimizer_at(self, step: int) -> bool:
        return self.schedule.switches_at(step) or self.variance_schedule.switches_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        risk = mean_over_present(*domain_means(example_losses(logits, batch), batch))
        with torch.autocast(logits.device.type, enabled=False):
            losses = nn.functional.cross_entropy(full_precision(logits), batch.y, reduction="none")
            matching, variance = risk_distribution_penalties(
                losses, batch.domain, batch.domains, batch.weight
            )
        loss = self.schedule.loss(risk, matching, batch.step)
        loss.total = loss.total + self.variance_schedule.weight_at(batch.step) * variance
        loss.parts["variance"] = variance
        return loss
