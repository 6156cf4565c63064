"""GAM: minimise the largest gradient norm nearby, a flatness of first order."""

from __future__ import annotations

import torch

from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction
from unseen.updates.perturbed import PerturbedStep


@updates.register(
    "gam",
    summary="Also minimise the largest gradient norm nearby",
    paper="Zhang et al. 2023, arXiv 2303.03108",
    search={
        "rho": ("log", 5e-2, 5e-1),
        "difference": ("log", 1e-2, 1e-1),
        "alpha": ("uniform", 0.1, 0.9),
        "gamma": ("log", 1e-2, 3e-1),
    },
)
class GAM(PerturbedStep):
    """The accelerated algorithm of appendix D: four gradients, no Hessian.

    g0 at w, g1 at w + r g0 / |g0|; their difference points where |g| grows. g2 at the end w* of a step of
    length rho along it, g3 at w* + r g2 / |g2|. Followed is v = alpha g1 + (1 - alpha) g3, less gamma times
    the part of beta g0 + (1 - beta) g2 that is orthogonal to v.

    rho         radius in which the gradient norm is largest
    difference  r, the length of the finite differences
    """

    def __init__(
        self,
        rho: float = 0.2,
        difference: float = 0.02,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 0.03,
    ):
        super().__init__(rho)
        self.difference, self.alpha, self.beta, self.gamma = difference, alpha, beta, gamma

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        g0 = self.gradients()
        with self.parameters_restored():
            with self.parameters_restored():
                self.ascend(self.difference)
                self.gradient_again(loss_function, batch)
            g1 = self.gradients()
            for parameter, a, b in zip(self.parameters, g0, g1, strict=True):
                parameter.grad = None if a is None or b is None else b - a
            self.ascend(self.rho)
            self.gradient_again(loss_function, batch)
            g2 = self.gradients()
            self.ascend(self.difference)
            self.gradient_again(loss_function, batch)
        with torch.no_grad():
            descent = [None if a is None or b is None else a.lerp(b, 1 - self.beta)
                       for a, b in zip(g0, g2, strict=True)]  # fmt: skip
            for parameter, gradient in zip(self.parameters, g1, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad.lerp_(gradient, self.alpha)
        self.subtract_orthogonal(descent, self.gamma)
        return loss
