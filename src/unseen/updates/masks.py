"""ANDMask and SANDMask: follow the gradient only where the domains agree."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule
from unseen.updates.domains import pooled, present_domains


class DomainMask(UpdateRule):
    """Mean of the domains' gradients times a mask in [0, 1], coordinate by coordinate.

    Each parameter's gradient is divided by the mean of its mask, so that masking does not shrink the update
    (as in the authors' code). A domain's gradient is that of the objective on its examples alone.

    threshold  agreement |mean sign of the gradients| that a coordinate needs, in [0, 1]
    """

    name: str

    def __init__(self, threshold: float):
        if not 0 <= threshold <= 1:
            raise InputError(
                f"threshold {threshold}", "is not in [0, 1]", "Give a share of agreeing domains."
            )
        self.threshold = threshold

    @abstractmethod
    def mask(self, gradients: Tensor) -> Tensor:
        """Mask (...) of a parameter whose gradients in D >= 2 domains are (D, ...)."""

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        losses, sizes, gradients = [], [], []
        for domain in present_domains(batch, self.name):
            part = batch.of_domain(domain)
            losses.append(self.gradient(loss_function, part))
            sizes.append(len(part))
            gradients.append([parameter.grad for parameter in self.parameters])
        if len(gradients) > 1:  # else the batch happens to hold one domain, which agrees with itself
            for parameter, own in zip(self.parameters, zip(*gradients, strict=True), strict=True):
                parameter.grad = self._merged(own)
        self.apply()
        return pooled(losses, sizes)

    def _merged(self, own: tuple[Tensor | None, ...]) -> Tensor | None:
        known = [gradient for gradient in own if gradient is not None]
        if not known:
            return None
        gradients = torch.stack([torch.zeros_like(known[0]) if g is None else g for g in own])
        mask = self.mask(gradients)
        share = mask.flatten(1).mean(1) if self.stacked else mask.mean()
        return gradients.mean(0).mul_(mask).div_(self.per_run(share + 1e-10, mask))


def agreement(gradients: Tensor) -> Tensor:
    """|mean over domains of the sign|, in [0, 1]: (D, ...) -> (...)."""
    return gradients.sign().sum(0).abs_().div_(len(gradients))


@updates.register(
    "andmask",
    summary="Follow the gradient where (nearly) all domains agree on its sign",
    paper="Parascandolo et al. 2021, arXiv 2009.00329",
    search={"threshold": ("uniform", 0.5, 1.0)},
)
class ANDMask(DomainMask):
    """One where the agreement reaches the threshold, else zero."""

    name = "andmask"

    def __init__(self, threshold: float = 1.0):
        super().__init__(threshold)

    def mask(self, gradients: Tensor) -> Tensor:
        return (agreement(gradients) >= self.threshold).to(gradients.dtype)


@updates.register(
    "sandmask",
    summary="A smooth AND-mask, sharper where the domains' gradients vary little",
    paper="Shahtalebi et al. 2021, arXiv 2106.02266",
    search={"threshold": ("uniform", 0.0, 1.0), "steepness": ("log", 1e-3, 1e5)},
)
class SANDMask(DomainMask):
    """max(0, tanh(steepness / variance * (agreement - threshold))), variance over domains.

    A threshold of one, DomainBed's default, would train nothing, because no agreement exceeds it: it must be
    below, and is 0.5 here.
    """

    name = "sandmask"

    def __init__(self, threshold: float = 0.5, steepness: float = 10.0):
        super().__init__(threshold)
        if threshold == 1:
            raise InputError(
                "threshold 1", "masks every coordinate, so nothing is trained", "Give less than 1."
            )
        self.steepness = steepness

    def mask(self, gradients: Tensor) -> Tensor:
        centred = gradients - gradients.mean(0)  # by hand: `var` over a short first dimension is far slower
        variance = centred.square_().sum(0).div_(len(gradients) - 1).clamp_(min=1e-17)
        above = agreement(gradients).sub_(self.threshold)
        return above.mul_(self.steepness).div_(variance).tanh_().clamp_(min=0)
