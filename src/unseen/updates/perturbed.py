"""The engine of sharpness-aware rules: a gradient at the worst parameters within a ball."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule

METRICS = ("euclidean", "adaptive", "fisher")


class TwoPassRule(UpdateRule):
    """A rule that takes gradients at moved parameters and comes back; subclasses define `direction` or `step`."""

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._batch_norms = [layer for layer in layers if layer.track_running_stats]
        return self

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.direction(loss_function, batch)
        self.apply()
        return loss

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        """Fill the gradients with what to follow; return the loss at the parameters, which stay as they are."""
        raise TypeError(f"{type(self).__name__} must define direction(loss_function, batch) -> Loss")

    def gradient_again(self, loss_function: LossFunction, batch: Batch) -> Loss:
        """Fill the gradients by another pass; batch normalisation's running statistics stay as they are."""
        with self.running_statistics_kept():
            return self.gradient(loss_function, batch.again())

    @contextmanager
    def running_statistics_kept(self) -> Iterator[None]:
        """Inside, batch normalisation in training takes the batch's statistics and keeps none."""
        for layer in self._batch_norms:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in self._batch_norms:
                layer.track_running_stats = True

    def gradients(self) -> list[Tensor | None]:
        """The present gradients: the next pass makes new ones and leaves these alone."""
        return [parameter.grad for parameter in self.parameters]

    @contextmanager
    def parameters_restored(self) -> Iterator[None]:
        """Inside, parameters may move; afterwards they are what they were."""
        here = [parameter.detach().clone() for parameter in self.parameters]
        try:
            yield
        finally:
            self.return_to(here)

    @torch.no_grad()
    def return_to(self, here: list[Tensor]) -> None:
        """Copied, not subtracted: w + e - e is not w in floating point."""
        for parameter, original in zip(self.parameters, here, strict=True):
            parameter.copy_(original)


class PerturbedStep(TwoPassRule):
    """Gradient g at the parameters w, gradient g' at w + r T^2 g / |T g|, and a step along what both make.

    T, a diagonal, is the metric of the ball of radius r:
    "euclidean"  T = 1 (Foret et al. 2021, equation 2)
    "adaptive"   T = |w| + eta (Kwon et al. 2021, equation 9); eta keeps weights of zero movable
    "fisher"     T^2 = 1 / (1 + eta g^2), inverse of the diagonal Fisher of the batch's mean gradient, which
                 eta weighs against the identity (Kim et al. 2022; checked against three public implementations)

    Subclasses may define the `radius`, and the `target`: the gradient to follow, made of g and g'.
    """

    def __init__(self, rho: float, metric: str = "euclidean", eta: float = 0.01):
        if metric not in METRICS:
            raise InputError(f"metric {metric!r}", "is not known", f"Choose one of {', '.join(METRICS)}.")
        if rho < 0 or eta < 0:
            raise InputError(f"rho {rho}, eta {eta}", "are below zero", "Give values of zero or more.")
        self.rho, self.metric, self.eta = rho, metric, eta

    def radius(self, batch: Batch) -> float | Tensor:
        """Radius of the ball: a number, or (R,) when stacked. Called after the first gradient."""
        return self.rho

    def target(self, first: list[Tensor | None]) -> None:
        """Turn the gradient at the perturbed parameters into the one to follow; `first` is that at w."""

    @torch.no_grad()
    def squared_metric(self) -> list[Tensor] | None:
        """T^2 of each parameter, None when it is one; made of the present parameters and gradients."""
        if self.metric == "adaptive":
            return [p.abs().add_(self.eta).square_() for p in self.parameters]
        if self.metric == "fisher":
            one = torch.ones((), device=self.parameters[0].device)
            gradients = [p.grad for p in self.parameters]  # without one a parameter does not move
            return [
                one if g is None else torch.addcmul(one, g, g, value=self.eta).reciprocal_()
                for g in gradients
            ]
        return None

    @torch.no_grad()
    def ascend(self, radius: float | Tensor, squares: list[Tensor] | None = None) -> None:
        """Move the parameters by radius T^2 g / |T g|, with g the present gradient.

        squares  T^2 of each parameter, which the products T^2 g replace in place; None when it is one
        Raises `InputError` when no parameter has a gradient: there is no way up then.
        """
        gradients = moves = self.gradients()
        if all(gradient is None for gradient in gradients):
            problem = f"reaches none of the {len(gradients)} parameters that the optimizer moves"
            raise InputError("gradient", problem, "Give the optimizer parameters that the loss depends on.")
        if squares is None:
            norm = self.gradient_norm()
        else:
            pairs = zip(gradients, squares, strict=True)
            moves = [None if gradient is None else square.mul_(gradient) for gradient, square in pairs]
            norm = self.inner_products(gradients, moves).sqrt()
        self.move(moves, radius / (norm + 1e-12))

    def move(self, moves: list[Tensor | None], factor: Tensor) -> None:
        """Add factor * moves to the parameters."""
        for parameter, move in zip(self.parameters, moves, strict=True):
            if move is not None:
                parameter.addcmul_(move, self.per_run(factor, parameter))

    def direction(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.gradient(loss_function, batch)
        first = self.gradients()
        with self.parameters_restored():
            self.ascend(self.radius(batch), self.squared_metric())
            self.perturbed_loss = self.gradient_again(loss_function, batch).total.detach()
        self.target(first)
        return loss

    def inner_products(self, one: list[Tensor | None], other: list[Tensor | None]) -> Tensor:
        """<one, other> over all parameters that both have: a scalar, or (R,) when stacked."""
        products = []
        for a, b in zip(one, other, strict=True):
            if a is not None and b is not None:
                product = a * b  # not torch.dot, whose last bits depend on where in memory its operands lie
                products.append(product.flatten(1).sum(1) if self.stacked else product.sum())
        return torch.stack(products).sum(0) if products else torch.zeros(())

    @torch.no_grad()
    def subtract_orthogonal(self, vectors: list[Tensor | None], weight: float) -> None:
        """g <- g - weight * (the part of `vectors` orthogonal to g), with g the present gradient."""
        present = self.gradients()
        share = self.inner_products(vectors, present) / (self.gradient_norm().square() + 1e-24)
        for vector, gradient in zip(vectors, present, strict=True):
            if vector is not None and gradient is not None:
                kept = 1 + weight * self.per_run(share, gradient)
                gradient.mul_(kept).sub_(vector, alpha=weight)  # the part along g stays
