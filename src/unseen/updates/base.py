"""The update contract: how a loss becomes a change of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.objectives import Loss
from unseen.shifts import Batch

LossFunction = Callable[[Batch], Loss]


class UpdateRule:
    """Owns the optimizer. Subclasses store hyperparameters in `__init__` and define `step`.

    `step` gets the loss as a function of a batch, so a rule may evaluate it at perturbed parameters
    (`batch.again()`), on one domain (`batch.of_domain(d)`) or on part of the batch (`batch.take(rows)`).

    Rules also run on parameters that carry a leading dimension of R independent runs (`stacked=True`):
    `gradient_norm` is then one norm a run, shaped to multiply the parameters.
    """

    def bind(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        backward: Callable[[Tensor], None] | None = None,
        clip: float | None = None,
        stacked: bool = False,
    ) -> Self:
        """Attach the parameters of `module` and their optimizer.

        backward  how to differentiate (Fabric's `backward` under mixed precision); default autograd
        clip      largest gradient norm of an update, None for no limit
        """
        self.module, self.optimizer, self.clip, self.stacked = module, optimizer, clip, stacked
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._backward = backward or (lambda loss: loss.backward())
        return self

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        """Change the parameters once; return the loss at the parameters before the change."""
        raise TypeError(f"{type(self).__name__} must define step(loss_function, batch) -> Loss")

    def gradient(self, loss_function: LossFunction, batch: Batch) -> Loss:
        """Fill the gradients of `parameters` by one forward and backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_function(batch)
        self._backward(loss.total)
        return loss

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the whole gradient: a scalar, or (R,) when stacked."""
        norms = []
        for parameter in self.parameters:
            if parameter.grad is not None:
                flat = parameter.grad.flatten(1) if self.stacked else parameter.grad.flatten()
                norms.append(torch.linalg.vector_norm(flat, dim=-1))
        return torch.linalg.vector_norm(torch.stack(norms), dim=0) if norms else torch.zeros(())

    def per_run(self, value: Tensor, like: Tensor) -> Tensor:
        """Shape a scalar or (R,) value so that it multiplies a parameter."""
        return value.view(-1, *[1] * (like.dim() - 1)) if self.stacked else value

    def apply(self) -> None:
        """Clip the gradient and let the optimizer move the parameters."""
        if self.clip is not None:
            factor = (self.clip / (self.gradient_norm() + 1e-12)).clamp(max=1.0)
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.per_run(factor, parameter))
        self.optimizer.step()

    def reset(self, runs: Tensor | None = None) -> None:
        """Forget what past gradients left behind: the loss has jumped (`Objective.resets_optimizer_at`).

        runs  positions of the runs whose loss has jumped when several are stacked, None for all
        """
        if runs is None:
            self.optimizer.state.clear()
        else:
            self.optimizer.forget(runs)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """State beside the optimizer's (moving averages, reference parameters): tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
