"""EQRM: minimise a high quantile of the domains' risks, what a new domain stays below with that probability."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.penalty import from_step
from unseen.registry import objectives
from unseen.shifts import Batch

BISECTIONS = 40
SMALLEST_VARIANCE = 1e-12
"""Of the risks: keeps the density finite when all risks are equal or only one domain is present."""


def kernel_quantile(risks: Tensor, quantile: float | Tensor, present: Tensor | None = None) -> Tensor:
    """Quantile of a Gaussian kernel density estimate over the risks (D,) of the present domains: a scalar.

    Bandwidth 1.06 std n^(-1/5) (Silverman 1986). The quantile Q solves F(Q, risks) = quantile; it is found by
    bisection, and its gradient is that of the implicit function, -(dF / d risks) / (dF / dQ).
    """
    present = torch.ones_like(risks) if present is None else present
    count = present.sum().clamp(min=1)
    share = present / count
    deviations = (risks - share @ risks) * present
    variance = deviations.square().sum() / (count - 1).clamp(min=1)
    width = 1.06 * (variance + SMALLEST_VARIANCE).sqrt() * count ** (-0.2)

    def reached(at: Tensor, risks: Tensor, width: Tensor) -> Tensor:
        return share @ torch.special.ndtr((at - risks) / width)

    # the quantile of a mixture lies between those of its components
    known, fixed = risks.detach(), width.detach()
    offset = fixed * torch.special.ndtri(torch.as_tensor(quantile, dtype=fixed.dtype))
    infinite = torch.full_like(known, torch.inf)
    low = torch.where(present > 0, known, infinite).amin() + offset
    high = torch.where(present > 0, known, -infinite).amax() + offset
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = reached(middle, known, fixed) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    found = (low + high) / 2
    z = (found - known) / fixed
    density = share @ torch.exp(-z.square() / 2) / (fixed * (2 * torch.pi) ** 0.5)
    change = -reached(found, risks, width) / density.clamp(min=torch.finfo(risks.dtype).tiny)
    return found + (change - change.detach())


@objectives.register(
    "eqrm",
    summary="High quantile of the domains' risks, by a kernel density estimate",
    paper="Eastwood et al. 2022, arXiv 2207.09944",
    search={"quantile": ("uniform", 0.5, 0.99), "warmup_steps": ("choice", [0, 50, 100, 200])},
)
class EQRM(Objective):
    """Mean of the domains' risks in the first `warmup_steps` updates, then their `kernel_quantile`
    (Algorithm 1).

    quantile  in (0, 1), alpha of the paper: 0.5 is the median, towards 1 the worst case

    The defaults are DomainBed's, except that its burn-in is 2500 of 5000 steps, here 100, and that the learning
    rate stays (there it falls to 1e-6 after burn-in). Values agree with DomainBed's, gradients do not: there
    they run through the first bracket of the bisection, so through the bandwidth, the lowest and the highest risk.
    """

    needs_domains = True
    carries_weights = True

    def __init__(self, quantile: float = 0.75, warmup_steps: int = 100):
        super().__init__()
        if not 0 < quantile < 1:
            raise InputError("quantile", f"is {quantile}", "Give a number between 0 and 1.")
        if warmup_steps < 0:
            raise InputError("warmup_steps", f"is {warmup_steps}", "Give a number of steps from 0.")
        self.quantile, self.warmup_steps = quantile, warmup_steps

    def resets_optimizer_at(self, step: int) -> bool:
        return step == self.warmup_steps > 0

    def forward(self, model: Network, batch: Batch) -> Loss:
        losses = full_precision(example_losses(model(batch.x), batch))
        with torch.autocast(losses.device.type, enabled=False):
            risks, present = domain_means(losses, batch)
            tail = kernel_quantile(risks, self.quantile, present)
        mean = mean_over_present(risks, present)
        total = from_step(self.warmup_steps, batch.step, tail, mean)
        return Loss(total, {"mean": mean, "quantile": tail})
