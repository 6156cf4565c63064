"""SAM: step along the gradient taken at the worst parameters nearby."""

from __future__ import annotations

import torch

from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule


@updates.register(
    "sam",
    summary="Gradient at the worst parameters within a ball of radius rho",
    paper="Foret et al. 2021, arXiv 2010.01412",
    search={"rho": ("log", 1e-2, 2e-1)},
)
@updates.register(
    "asam",
    summary="SAM with a ball that scales with each parameter",
    paper="Kwon et al. 2021, arXiv 2102.11600",
    preset={"rho": 0.5, "adaptive": True},
    search={"rho": ("log", 1e-1, 2.0)},
)
class SAM(UpdateRule):
    """Perturbation rho T^2 g / |T g| with T = 1 (SAM, equation 2) or T = |w| + eta (ASAM, equation 9)."""

    def __init__(self, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01):
        self.rho, self.adaptive, self.eta = rho, adaptive, eta

    @torch.no_grad()
    def _perturb(self) -> None:
        scales = [p.abs() + self.eta for p in self.parameters] if self.adaptive else None
        radius = self.rho / (self.gradient_norm(scales) + 1e-12)
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                move = parameter.grad if scales is None else parameter.grad * scales[index].square()
                parameter.addcmul_(move, self.per_run(radius, parameter))

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        here = [parameter.detach().clone() for parameter in self.parameters]
        self._perturb()
        self.gradient(loss_function, batch.again())
        with torch.no_grad():  # copied back, not subtracted: w + e - e is not w in floating point
            for parameter, original in zip(self.parameters, here, strict=True):
                parameter.copy_(original)
        self.apply()
        return loss
