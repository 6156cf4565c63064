"""IRM: features on which one fixed head is optimal in every domain."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.head_statistics import head_statistics
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch


def scale_gradients(
    logits: Tensor, targets: Tensor, domain: Tensor, domains: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Derivative (D,) of each domain's risk in a factor on the logits, at 1, and `present` (D,)."""
    found = head_statistics(logits, logits, targets, domain, domains, order=["scale_gradient"], weight=weight)
    return found.values["scale_gradient"], found.rows.present


def irm_penalty(
    logits: Tensor,
    targets: Tensor,
    domain: Tensor,
    domains: int,
    *,
    unbiased: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over present domains of the squared scale gradient (IRMv1, Arjovsky et al. 2019, section 3.1).

    logits (B, C), targets (B,) labels or (B, C) soft; domain (B,) in [0, domains).
    unbiased  the product of the scale gradients of every other example of a domain and of the rest, whose
              expectation is the squared population gradient (appendix D; DomainBed). It may be negative;
              domains with one example are left out.
    """
    if not unbiased:
        gradients, present = scale_gradients(logits, targets, domain, domains, weight)
        return mean_over_present(gradients.square(), present)
    member = (domain.unsqueeze(1) == torch.arange(domains, device=domain.device)).long()
    rank = (member.cumsum(0) * member).sum(1) - 1
    gradients, present = scale_gradients(logits, targets, 2 * domain + rank % 2, 2 * domains, weight)
    both = present.view(domains, 2).prod(1)
    return (gradients.view(domains, 2).prod(1) * both).sum() / both.sum().clamp(min=1)


@objectives.register(
    "irm",
    summary="Features on which one head is optimal in every domain (IRMv1)",
    paper="Arjovsky et al. 2019, arXiv 1907.02893",
    search={"penalty_weight": ("log", 1e-1, 1e5), "warmup_steps": ("choice", [0, 50, 100, 200])},
)
class IRM(Objective):
    """Mean of the domains' risks + weight * `irm_penalty`; see `PenaltySchedule` for the other options.

    Defaults are DomainBed's, except for the warm-up: 500 of 5000 steps there, 100 here.
    """

    needs_domains = True
    carries_weights = True

    def __init__(
        self,
        penalty_weight: float = 100.0,
        warmup_steps: int = 100,
        warmup_weight: float = 1.0,
        rescale_loss: bool = False,
        unbiased: bool = False,
    ):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight, warmup_steps, warmup_weight, rescale_loss)
        self.unbiased = unbiased

    def resets_optimizer_at(self, step: int) -> bool:
        return self.schedule.switches_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        risk = mean_over_present(*domain_means(example_losses(logits, batch), batch))
        with torch.autocast(logits.device.type, enabled=False):
            penalty = irm_penalty(
                logits, batch.y, batch.domain, batch.domains, unbiased=self.unbiased, weight=batch.weight
            )
        return self.schedule.loss(risk, penalty, batch.step)
