"""TRAM: SAM whose radius is how far the outputs have moved from a reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.errors import InputError, TrainingDiverged
from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction
from unseen.updates.input_noise import input_noise
from unseen.updates.perturbed import PerturbedStep

REFERENCES = ("previous", "pretrained", "ema", "input_noise")


class OutputAware(PerturbedStep):
    """A perturbed step that reads the outputs of one network, `module.network`."""

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        if options.get("stacked"):
            problem, remedy = "reads the outputs of one network at a time", "Train its runs one by one."
            raise InputError("TRAM", problem, remedy)
        network = getattr(module, "network", None)
        if not isinstance(network, nn.Module):
            remedy = "Bind it to a TrainingSystem, or to any module with a module `network`."
            raise InputError("TRAM", f"finds no network in the {type(module).__name__} that it moves", remedy)
        super().bind(module, optimizer, **options)
        self.network = network
        return self


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

    reference  "previous": the parameters before the last update; "pretrained": those that training began
               from; "ema": a moving average of past parameters; "input_noise": the present parameters on
               inputs with N(0, sigma^2) added (on embeddings, for tokens)
    metric     "adaptive" as in the paper, or "euclidean", for which `max_radius` should be about 0.05
    max_radius cap of d, None for none. The paper has none and observes d below the tuned radius of ASAM,
               0.5; a new head can exceed it early
    scale      factor of d
    decay      of the moving average

    Both outputs are those of evaluation mode: dropout would add its own noise to d. The first update of a
    reference made of parameters is a plain one, since d is zero. No gradient flows through d. The loss has d,
    the radius (length of the perturbation in the metric) and the perturbed loss as parts, for the log.
    """

    def __init__(
        self,
        reference: str = "previous",
        metric: str = "adaptive",
        max_radius: float | None = 0.5,
        scale: float = 1.0,
        sigma: float = 0.1,
        decay: float = 0.999,
        eta: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(rho=0.0, metric=metric, eta=eta)
        if reference not in REFERENCES:
            remedy = f"Choose one of {', '.join(REFERENCES)}."
            raise InputError(f"reference {reference!r}", "is not known", remedy)
        self.kind, self.sigma, self.seed = reference, sigma, seed
        self.max_radius, self.scale = max_radius, scale
        self.decay = {"previous": 0.0, "pretrained": 1.0, "ema": decay}.get(reference)
        self.reference: dict[str, Tensor] = {}
        self.divergence = torch.zeros(())

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        if self.decay is not None and not self.reference:
            self._remember()
            loss = self.gradient(loss_function, batch)
            self.apply()
            return loss
        loss = super().step(loss_function, batch)
        if torch.isfinite(loss.total) and not torch.isfinite(self.divergence):
            raise TrainingDiverged(
                f"update rule 'tram': the divergence from the reference {self.kind!r} is "
                f"{float(self.divergence)} at step {batch.step}. Lower the learning rate or sigma."
            )
        log = {"divergence": self.divergence, "radius": self._capped(), "perturbed": self.perturbed_loss}
        return Loss(loss.total, {**loss.parts, **log})

    @torch.no_grad()
    def radius(self, batch: Batch) -> Tensor:
        with _evaluation_mode(self.network):
            now = self.network(batch.x).log_softmax(-1)
            if self.decay is None:
                with input_noise(self.network, batch, self.sigma, self.seed) as noised:
                    there = self.network(noised.x).log_softmax(-1)
            else:
                there = functional_call(self.network, self.reference, (batch.x,)).log_softmax(-1)
        # summed over classes, then averaged: the released code also averages over classes
        self.divergence = (there.exp() * (there - now)).sum(-1).mean().clamp(min=0)
        self._remember()
        return self._capped()

    def _capped(self) -> Tensor:
        radius = self.scale * self.divergence
        return radius if self.max_radius is None else radius.clamp(max=self.max_radius)

    @torch.no_grad()
    def _remember(self) -> None:
        """Let the present parameters, those before this update, enter the reference of the next."""
        if self.decay is None or (self.decay == 1 and self.reference):
            return
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and name in self.reference:
                self.reference[name].lerp_(parameter, 1 - self.decay)
            elif parameter.requires_grad:
                self.reference[name] = parameter.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        return {"reference": {name: value.clone() for name, value in self.reference.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = dict(self.network.named_parameters())
        self.reference = {n: v.to(own[n].device, copy=True) for n, v in state["reference"].items()}


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

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        first = self.gradients()
        with input_noise(self.network, batch, self.sigma, self.seed) as noised:
            self.gradient_again(loss_function, noised)
        scales = self.scales()
        for parameter, gradient in zip(self.parameters, first, strict=True):
            parameter.grad = gradient
        with self.parameters_restored():
            self.ascend(self.rho, scales)
            self.gradient_again(loss_function, batch)
        self.apply()
        return loss


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, every layer is in evaluation mode; afterwards those that trained do so again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
