"""MLDG: a step on some domains that must also help on the others."""

from __future__ import annotations

import torch

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction
from unseen.updates.domains import pooled, present_domains, shuffled
from unseen.updates.perturbed import TwoPassRule


@updates.register(
    "mldg",
    summary="A step on some training domains must also lower the loss on the held-out ones",
    paper="Li et al. 2018, arXiv 1710.03463",
    search={"beta": ("log", 1e-1, 1e1), "inner_rate": ("log", 1e-3, 1.0)},
)
class MLDG(TwoPassRule):
    """Follow F'(theta) + beta G'(theta - inner_rate F'(theta)) (algorithm 1, its first-order form).

    F is the loss on the meta-train domains, G that on `held_out` domains, drawn anew at every update (by
    `seed` and the step). With two training domains each has its turn on either side. Second derivatives of F
    are left out, as in the implementations in use.

    inner_rate  step size inside; None for the optimizer's learning rate, as in the paper
    """

    def __init__(self, beta: float = 1.0, inner_rate: float | None = None, held_out: int = 1, seed: int = 0):
        if held_out < 1:
            raise InputError(f"held_out {held_out}", "leaves no domain to test on", "Give one or more.")
        self.beta, self.inner_rate, self.held_out, self.seed = beta, inner_rate, held_out, seed

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        domains = shuffled(present_domains(batch, "mldg"), self.seed, batch.step)
        if len(domains) == 1:  # of several in training: this batch has nothing to hold out
            loss = self.gradient(loss_function, batch)
            self.apply()
            return loss
        held_out = torch.tensor(domains[-min(self.held_out, len(domains) - 1) :], device=batch.domain.device)
        tested = torch.isin(batch.domain, held_out)
        train, test = batch.take(~tested), batch.take(tested)

        train_loss, test_loss = self.gradient(loss_function, train), loss_function(test)
        first = self.gradients()
        with self.parameters_restored():
            self._descend()
            self.gradient_again(loss_function, test)
        for parameter, gradient in zip(self.parameters, first, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad.mul_(self.beta).add_(gradient)
            else:
                parameter.grad.mul_(self.beta)
        self.apply()
        return pooled([train_loss, test_loss], [len(train), len(test)])

    @torch.no_grad()
    def _descend(self) -> None:
        rate = self.optimizer.param_groups[-1]["lr"] if self.inner_rate is None else self.inner_rate
        for parameter in self.parameters:
            if parameter.grad is not None:
                step = self.per_run(rate, parameter) if isinstance(rate, torch.Tensor) else rate
                parameter.sub_(parameter.grad * step)
