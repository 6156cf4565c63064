"""SAGM: minimise the loss, the perturbed loss and the angle between their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.registry import updates
from unseen.updates.perturbed import PerturbedStep


@updates.register(
    "sagm",
    summary="Loss and perturbed loss together, with gradients that are made to agree",
    paper="Wang et al. 2023, arXiv 2303.10353",
    search={"rho": ("log", 1e-2, 2e-1), "alpha": ("choice", [5e-4, 1e-3])},
)
class SAGM(PerturbedStep):
    """Follow the mean of g and of the gradient at w + rho g / |g| - alpha g (equation 13).

    The paper has the sum; the mean leaves the learning rate its meaning, as in the authors' code.
    """

    def __init__(self, rho: float = 0.05, alpha: float = 0.001):
        super().__init__(rho)
        self.alpha = alpha

    def move(self, moves: list[Tensor | None], factor: Tensor) -> None:
        super().move(moves, factor - self.alpha)  # the moves are g, as the metric is Euclidean

    @torch.no_grad()
    def target(self, first: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, first, strict=True):
            if parameter.grad is not None and gradient is not None:
                parameter.grad.add_(gradient).mul_(0.5)
