"""Training a pruned network: any update rule, with weights that are zero kept at zero."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unseen.errors import UnseenWarning
from unseen.networks.pruning import mask_gradient, prunable
from unseen.objectives import Loss
from unseen.registry import Spec, updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule


@updates.register(
    "keep-zeros",
    summary="Another rule, with linear and convolutional weights that are zero at the start kept at zero",
    paper="Zimmer et al. 2024, arXiv 2306.16788",
)
class KeepZeros(UpdateRule):
    """The mask is where these weights are not zero when training begins: give `fit` a pruned network as `start`.

    base  the rule that moves the others, such as "sam(rho=0.1)"

    Gradients are zeroed as they arise: perturbations, momentum and norms do not see pruned weights either.
    """

    def __init__(self, base: str | Spec = "plain"):
        self.base: UpdateRule = updates.build(base)
        self._masks: dict[int, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        self.base.bind(module, optimizer, **options)
        return self

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        if self._masks is None:
            self._keep({index: self.parameters[index].detach() != 0 for index in self._weights()})
        return self.base.step(loss_function, batch)

    def _weights(self) -> list[int]:
        """Positions of the weights; parameters may be stacked, so they are known by those of the module."""
        weights = {id(weight) for weight in prunable(self.module).values()}
        return [index for index, p in enumerate(self.module.parameters()) if id(p) in weights]

    def _keep(self, masks: dict[int, Tensor]) -> None:
        self._masks = masks
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            mask_gradient(self.parameters[index], mask) for index, mask in masks.items() if not mask.all()
        ]
        names = [name for name, _ in self.module.named_parameters()]
        for index, mask in masks.items():
            if not mask.any():
                warnings.warn(
                    f"weight {names[index]!r} is zero throughout and stays so", UnseenWarning, stacklevel=3
                )

    def reset(self, runs: Tensor | None = None) -> None:
        self.base.reset(runs)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict(), "masks": self._masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
        if state["masks"] is not None:
            self._keep({i: mask.to(self.parameters[i].device) for i, mask in state["masks"].items()})
