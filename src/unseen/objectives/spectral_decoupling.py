"""Spectral decoupling: small logits, so that one feature that suffices does not starve the others."""

from __future__ import annotations

from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch


def logit_penalty(logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared logit over examples and classes; logits (B, C), weight (B,) multiplies an example's share."""
    squares = logits.square().mean(1)
    return (squares if weight is None else squares * weight).mean()


@objectives.register(
    "sd",
    summary="Spectral decoupling: an L2 penalty on the logits against gradient starvation",
    paper="Pezeshki et al. 2021, arXiv 2011.09468",
    search={"penalty_weight": ("log", 1e-5, 1e-1)},
)
class SpectralDecoupling(Objective):
    """Mean loss over all examples + weight * `logit_penalty` (equation 25); defaults are DomainBed's."""

    carries_weights = True

    def __init__(self, penalty_weight: float = 0.1):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight)

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        risk = example_losses(logits, batch).mean()
        return self.schedule.loss(risk, logit_penalty(full_precision(logits), batch.weight), batch.step)
