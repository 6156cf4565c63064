"""GSAM: minimise the perturbed loss and, orthogonally to it, the gap to the loss itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.perturbed import PerturbedStep


@updates.register(
    "gsam",
    summary="SAM that also closes the gap between the perturbed loss and the loss",
    paper="Zhuang et al. 2022, arXiv 2203.08065",
    search={"rho": ("log", 1e-2, 2e-1), "alpha": ("log", 1e-2, 1.0)},
)
class GSAM(PerturbedStep):
    """Follow g' - alpha (g's part orthogonal to g') (algorithm 1).

    Checked against public code that derives from the authors'.

    rho, rho_min  the radius falls with the learning rate from `rho`, at the highest rate so far, to `rho_min`
                  at a rate of zero: (radius - rho_min) / (rho - rho_min) = rate / highest, as in the authors'
                  runs on ImageNet, there between a least rate and the highest. With a constant learning rate
                  it stays at `rho`
    """

    def __init__(self, rho: float = 0.04, rho_min: float = 0.02, alpha: float = 0.01):
        super().__init__(rho)
        self.rho_min, self.alpha = rho_min, alpha
        self.highest_rate: float | Tensor = 0.0

    def radius(self, batch: Batch) -> float | Tensor:
        rate = self.optimizer.param_groups[-1]["lr"]  # that of the head, undamped; (R,) when stacked
        if isinstance(rate, Tensor):
            self.highest_rate = torch.maximum(torch.as_tensor(self.highest_rate).to(rate), rate)
            share = rate / self.highest_rate.clamp(min=1e-30)
        else:
            self.highest_rate = max(float(self.highest_rate), rate)
            share = rate / max(self.highest_rate, 1e-30)
        return self.rho_min + (self.rho - self.rho_min) * share

    def target(self, first: list[Tensor | None]) -> None:
        self.subtract_orthogonal(first, self.alpha)

    def state_dict(self) -> dict[str, Any]:
        return {"highest_rate": self.highest_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.highest_rate = state["highest_rate"]
