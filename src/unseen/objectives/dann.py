"""DANN: features from which a discriminator cannot tell the domain."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch


class _ReversedGradient(torch.autograd.Function):
    """Identity forwards, gradient times -strength backwards (section 4.1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself, with a gradient that is multiplied by -strength."""
    return _ReversedGradient.apply(x, strength)


@objectives.register(
    "dann",
    summary="Features that hide the domain from a discriminator (gradient reversal)",
    paper="Ganin et al. 2016, arXiv 1505.07818",
    search={"strength": ("log", 1e-2, 1e1), "warmup_steps": ("choice", [0, 100, 500])},
)
class DANN(Objective):
    """Discriminator and network take one joint step; `strength` grows as 2 / (1 + exp(-10 p)) - 1
    (section 5.2.2) with p = step / warmup_steps, and stays at its full value afterwards.
    """

    needs_domains = True
    needs_features = True

    def __init__(self, strength: float = 1.0, width: int = 64, warmup_steps: int = 100):
        super().__init__()
        self.strength, self.width, self.warmup_steps = strength, width, warmup_steps

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.discriminator = nn.Sequential(
            nn.Linear(features, self.width), nn.ReLU(), nn.Linear(self.width, domains)
        )

    def strength_at(self, step: int) -> float:
        """How strongly the features resist the discriminator at a training step."""
        progress = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.strength * (2 / (1 + math.exp(-10 * progress)) - 1)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        guess = self.discriminator(reverse_gradient(features, self.strength_at(batch.step)))
        label = example_losses(model.head(features), batch).mean()
        domain = nn.functional.cross_entropy(guess, batch.domain)
        return Loss(label + domain, {"label": label, "domain": domain})
