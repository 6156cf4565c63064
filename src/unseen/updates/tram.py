"""TRAM: SAM whose radius is how far the outputs have moved from a reference."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError, TrainingDiverged
from unseen.objectives import Loss
from unseen.objectives.continuous_inputs import input_noise
from unseen.objectives.trust_region import ReferenceFunction, TrustRegion
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction
from unseen.updates.output_aware import OutputAware


@updates.register(
    "tram",
    summary="SAM with the divergence from the previous step's outputs as radius",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
)
@updates.register(
    "tram-pretrained",
    summary="TRAM with the network that training began from as reference",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
    preset={"reference": "pretrained"},
)
@updates.register(
    "tram-x",
    summary="TRAM with the outputs for noisy inputs as reference",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
    preset={"reference": "input_noise"},
    search={"sigma": ("log", 1e-2, 1.0)},
)
class TRAM(OutputAware):
    """Perturbation d T^2 g / |T g|, T = |w| + eta, d = mean over the batch of KL(reference || now).

    reference, divergence, sigma, decay
                of the distance d; see `TrustRegion`
    metric      "adaptive" as in the paper, or "euclidean", for which `max_radius` should be about 0.05
    max_radius  cap of d, None for none. The paper has none and observes d below the tuned radius of ASAM,
                0.5; a new head can exceed it early
    min_radius  least radius
    scale       factor of d

    The first update of a reference made of parameters is a plain one, since d is zero. No gradient flows
    through d. The loss has d, the radius (length of the perturbation in the metric), its Euclidean length and
    the perturbed loss as parts, for the log.
    """

    def __init__(
        self,
        reference: str | ReferenceFunction = "previous",
        metric: str = "adaptive",
        max_radius: float | None = 0.5,
        min_radius: float = 0.0,
        scale: float = 1.0,
        divergence: str = "kl",
        sigma: float = 0.1,
        decay: float = 0.999,
        eta: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(rho=0.0, metric=metric, eta=eta)
        if min_radius < 0 or (max_radius is not None and max_radius < min_radius):
            problem = "are no range from zero or more upwards"
            raise InputError(f"min_radius {min_radius}, max_radius {max_radius}", problem, "Try 0 and 0.5.")
        self.region = TrustRegion(reference, divergence, sigma, decay, seed)
        self.max_radius, self.min_radius, self.scale = max_radius, min_radius, scale

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        self.region.to(self.parameters[0].device)
        return self

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        first = not self.region.observed
        self.region.observe(self.network)
        if first:
            return self.gradient(loss_function, batch)
        loss = super().direction(loss_function, batch)
        if torch.isfinite(loss.total) and not torch.isfinite(self.divergence):
            raise TrainingDiverged(
                f"update rule 'tram': the divergence from the reference {self.region.kind!r} is "
                f"{float(self.divergence)} at step {batch.step}. Lower the learning rate or sigma."
            )
        log = {"divergence": self.divergence, "radius": self._capped(), "perturbed": self.perturbed_loss}
        return Loss(loss.total, {**loss.parts, **log, "perturbation": self.length})

    @torch.no_grad()
    def radius(self, batch: Batch) -> Tensor:
        self.divergence = self.region(self.network, batch).clamp(min=0)
        return self._capped()

    def _capped(self) -> Tensor:
        return (self.scale * self.divergence).clamp(self.min_radius, self.max_radius)

    def move(self, moves: list[Tensor | None], factor: Tensor) -> None:
        self.length = factor * self.inner_products(moves, moves).sqrt()
        super().move(moves, factor)

    def state_dict(self) -> dict[str, Any]:
        return {"region": self.region.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.region.load_state_dict(state["region"])


@updates.register(
    "tram-fisher",
    summary="Fisher SAM with the Fisher information of noisy inputs as metric",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
    search={"rho": ("log", 1e-2, 5e-1), "eta": ("log", 1e-2, 1e1), "sigma": ("log", 1e-2, 1.0)},
)
class TRAMFisher(OutputAware):
    """Fisher SAM whose metric comes from the gradient at inputs with N(0, sigma^2) added: three gradients.

    rho and eta are the radius and the damping of `PerturbedStep`, by default the paper's 0.1 each.
    """

    def __init__(self, rho: float = 0.1, eta: float = 0.1, sigma: float = 0.1, seed: int = 0):
        super().__init__(rho, "fisher", eta)
        self.sigma, self.seed = sigma, seed

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        first = self.gradients()
        with input_noise(self.network, batch, self.sigma, self.seed) as noised:
            self.gradient_again(loss_function, noised)
        squares = self.squared_metric()
        for parameter, gradient in zip(self.parameters, first, strict=True):
            parameter.grad = gradient
        with self.parameters_restored():
            self.ascend(self.rho, squares)
            self.gradient_again(loss_function, batch)
        return loss
