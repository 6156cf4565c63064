"""UDIM: a sharpness-aware rule whose loss landscape is to look alike for perturbed, unknown domains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unseen.errors import InputError, TrainingDiverged
from unseen.objectives import Loss, example_losses
from unseen.objectives.head_inconsistency import head_inconsistency
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.adversarial_inputs import (
    Perturbation,
    StylePerturbation,
    ValuePerturbation,
    adversarial_moves,
    moved_inputs,
)
from unseen.updates.base import LossFunction
from unseen.updates.output_aware import OutputAware
from unseen.updates.perturbed import PerturbedStep

PERTURBATIONS = ("pixel", "style")
PerturbFunction = Callable[[nn.Module, Batch], Batch]

_SEARCH = {
    "rho_x": ("log", 2e-2, 1.0),
    "variance_weight": ("log", 1e-1, 1e2),
    "norm_weight": ("log", 1e-1, 1e2),
}


@updates.register(
    "udim",
    summary="SAM whose loss landscape is to look alike for inputs perturbed towards unknown domains",
    paper="Shin et al. 2024, arXiv 2403.07329",
    search=_SEARCH,
)
@updates.register(
    "udim-style",
    summary="UDIM that perturbs the mean and contrast of each image channel: for a single domain",
    paper="Shin et al. 2024, arXiv 2403.07329",
    preset={"perturb": "style"},
    search=_SEARCH,
)
class UDIM(OutputAware):
    """Follow what `base` follows, plus the gradient of the head's inconsistency between x and perturbed x~.

    The inconsistency is `head_inconsistency`, variance_weight * its variance + norm_weight * its norm. x~ are the
    inputs after gradient ascent on CE(x) + r |grad_w CE(x)|, r the radius of the base rule (0 for TRAM's, which
    changes), for inputs that are not only lossy but sharp. Nothing flows back through the search for x~.

    base           a sharpness-aware rule: "sam", "asam", "fsam", "gsam", "sagm", "gam", with options such as
                   "sam(rho=0.1)", or one that is built
    perturb        "pixel": every value of the inputs moves (or of the embeddings of tokens); "style": mean and
                   deviation of each channel of each image; or a function (network, batch) -> batch
    rho_x          length of an example's move, relative to the length of what moves. The released code normalises
                   across the batch and takes a step of 10
    steps          of gradient ascent within rho_x
    sharp          False leaves r |grad_w CE(x)| out: x~ are then ordinary adversarial examples
    variance_weight, norm_weight, loss_weight
                   of the two parts of the inconsistency, which differ by orders of magnitude (see the log), and
                   of the cross-entropy of x~, which the paper does not train on
    per_domain     compare each domain with its own perturbed examples, else all together
    warmup_steps   updates in which the base rule is alone. The paper takes a fifth or a third of all and goes on
                   from the best of their states; here training simply goes on
    clamp, fixed   of "pixel", see `ValuePerturbation`

    The loss has the parts of the inconsistency ("variance", "norm") and the loss of x~ ("adversarial"), for the
    log. `perturbed` gives x~ on request.
    """

    def __init__(
        self,
        base: str | PerturbedStep = "sam",
        perturb: str | PerturbFunction = "pixel",
        rho_x: float = 0.2,
        steps: int = 1,
        sharp: bool = True,
        variance_weight: float = 1.0,
        norm_weight: float = 1.0,
        loss_weight: float = 0.0,
        per_domain: bool = True,
        warmup_steps: int = 100,
        clamp: bool = False,
        fixed: Sequence[int] = (),
    ):
        self.base = base if isinstance(base, PerturbedStep) else updates.build(base)
        if not isinstance(self.base, PerturbedStep) or isinstance(self.base, UDIM):
            raise InputError(f"base {base!r} of UDIM", "is not sharpness-aware", "Choose sam, sagm or gam.")
        super().__init__(self.base.rho)
        if self.rho == 0 and type(self.base).radius is PerturbedStep.radius:  # TRAM's is another at each step
            problem = "has a radius of 0"
            raise InputError(f"base {base!r} of UDIM", problem, "Give one above, such as sam(rho=0.05).")
        if not 0 < rho_x < math.inf or steps < 1 or warmup_steps < 0:
            problem = "are not a positive length, a number from 1 and a number from 0"
            raise InputError(
                f"rho_x {rho_x}, steps {steps}, warmup_steps {warmup_steps}", problem, "Try 0.2, 1, 100."
            )
        if min(variance_weight, norm_weight, loss_weight) < 0:
            problem, remedy = f"are {variance_weight}, {norm_weight}, {loss_weight}", "Give weights from 0."
            raise InputError("variance_weight, norm_weight and loss_weight", problem, remedy)
        if not callable(perturb) and perturb not in PERTURBATIONS:
            remedy = f"Choose one of {', '.join(PERTURBATIONS)}, or a function."
            raise InputError(f"perturb {perturb!r}", "is not known", remedy)
        self.perturbation: Perturbation = ValuePerturbation(clamp, fixed)
        if perturb == "style":
            self.perturbation = StylePerturbation()
        self.perturb = perturb if callable(perturb) else None
        self.rho_x, self.steps, self.sharp = rho_x, steps, sharp
        self.variance_weight, self.norm_weight, self.loss_weight = variance_weight, norm_weight, loss_weight
        self.per_domain, self.warmup_steps = per_domain, warmup_steps

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        self.base.bind(module, optimizer, **options)
        head = getattr(self.network, "head", None)
        if not isinstance(head, nn.Linear):
            problem = f"is {type(head).__name__}, but UDIM has closed forms"
            raise InputError("the network's head", problem, "Use a network with a linear head.")
        return self

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        if batch.step < self.warmup_steps:
            return self.base.direction(loss_function, batch)
        with self.running_statistics_kept():
            penalty, log = self.penalty(batch)
        own = torch.autograd.grad(penalty, self._trained(), allow_unused=True)
        loss = self.base.direction(loss_function, batch)
        for parameter, gradient in zip(self._trained(), self._of_all_processes(own), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return Loss(loss.total, {**loss.parts, **log})

    def penalty(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the base rule's loss, and its parts without their weights."""
        network = self.network
        if len(batch) == 1 and any(layer.training for layer in self._batch_norms):
            problem = "is of one example, which batch normalisation in training mode makes its own mean"
            raise InputError("the batch", problem, "Give two or more, or another normalisation.")
        head: nn.Linear = network.head  # type: ignore[assignment]
        featurizer: nn.Module = network.featurizer  # type: ignore[assignment]
        domain = batch.domain if self.per_domain else torch.zeros_like(batch.domain)
        domains = batch.domains if self.per_domain else 1
        features = featurizer(batch.x)
        known = features, head(features)
        with self.perturbed(batch) as worst:
            features = featurizer(worst.x)
        perturbed = features, head(features)
        found = head_inconsistency(
            known, perturbed, batch.y, domain, domains, weight=batch.weight, bias=head.bias is not None
        )
        loss = example_losses(perturbed[1], batch).mean()
        total = (
            self.variance_weight * found.variance + self.norm_weight * found.norm + self.loss_weight * loss
        )
        return total, {"variance": found.variance, "norm": found.norm, "adversarial": loss}

    @contextmanager
    def perturbed(self, batch: Batch) -> Iterator[Batch]:
        """Inside, evaluate the given batch x~ (tokens: the network perturbs their embeddings meanwhile)."""
        if self.perturb is not None:
            yield self.perturb(self.network, batch)
            return
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            moves = adversarial_moves(
                self.network, batch, self._rise, self.perturbation, radius=self.rho_x, steps=self.steps
            )
        if not all(torch.isfinite(move).all() for move in moves.values()):
            raise TrainingDiverged(
                f"update rule 'udim': the gradient of the perturbed inputs is not finite at step {batch.step}. "
                "Lower the learning rate, or give sharp=False when a layer has no second derivative."
            )
        with moved_inputs(self.network, batch, self.perturbation, moves) as worst:
            yield worst

    def _rise(self, batch: Batch) -> Tensor:
        """What x~ are to increase."""
        loss = example_losses(self.network(batch.x), batch).mean()
        if not self.sharp:
            return loss
        weights = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        squares = torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
        return loss + self.rho * squares.clamp(min=1e-24).sqrt()

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters if p.requires_grad]

    @staticmethod
    def _of_all_processes(gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Means over processes, if there are several: unlike the loss's, no wrapper takes them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in gradients:
                if gradient is not None:
                    torch.distributed.all_reduce(gradient)
                    gradient /= torch.distributed.get_world_size()
        return gradients

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
