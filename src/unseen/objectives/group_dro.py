"""GroupDRO: minimise the loss of the worst group, tracked by exponentiated gradient ascent."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch


def reweighted(weights: Tensor, losses: Tensor, step_size: float) -> Tensor:
    """Exponentiated-gradient step q_g <- q_g exp(eta * loss_g), normalised (Algorithm 1). All (D,)."""
    log_weights = weights.log() + step_size * losses
    return torch.softmax(log_weights, 0)


@objectives.register(
    "groupdro",
    summary="Loss of the worst domain, by exponentiated weights on domains",
    paper="Sagawa et al. 2020, arXiv 1911.08731",
    search={"step_size": ("log", 1e-3, 1e-1)},
)
class GroupDRO(Objective):
    """Domains are the groups, as in DomainBed; `step_size` is eta of Algorithm 1."""

    needs_domains = True
    carries_weights = True
    weights: Tensor

    def __init__(self, step_size: float = 0.01):
        super().__init__()
        self.step_size = step_size

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.register_buffer("weights", torch.full((domains,), 1 / domains))

    def forward(self, model: Network, batch: Batch) -> Loss:
        losses, _ = domain_means(example_losses(model(batch.x), batch), batch)
        if not batch.repeat:
            self.weights.copy_(reweighted(self.weights, losses.detach(), self.step_size))
        return Loss((self.weights * losses).sum(), {"worst": losses.max(), "mean": losses.mean()})
