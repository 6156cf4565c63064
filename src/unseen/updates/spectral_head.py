"""R4F's constraint: a head that is a contraction, so that outputs move no further than features do."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule


@updates.register(
    "spectral-head",
    summary="Keep the head's spectral norm at most one: with the objective r3f this is R4F",
    paper="Aghajanyan et al. 2021, arXiv 2008.03156",
)
class SpectralHead(UpdateRule):
    """An update of `base`, then the head's weights divided by their largest singular value if it is above `norm`.

    The paper reparametrises the head (spectral normalization, estimated by a power iteration); this projection
    gives the same bound, exactly, and leaves an ordinary linear head. R4F is "r3f+spectral-head".

    base  any other rule, by name with options or built
    """

    def __init__(self, base: str | UpdateRule = "plain", norm: float = 1.0):
        self.base = base if isinstance(base, UpdateRule) else updates.build(base)
        if norm <= 0 or isinstance(self.base, SpectralHead):
            raise InputError(
                f"base {base!r}, norm {norm}", "cannot be", "Give another rule and a positive norm."
            )
        self.norm = norm

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        super().bind(module, optimizer, **options)
        head = getattr(getattr(module, "network", None), "head", None)
        if self.stacked or not isinstance(head, nn.Linear):
            problem, remedy = "bounds the linear head of one network", "Train single runs of such a network."
            raise InputError("spectral-head", problem, remedy)
        self.head = head
        self.base.bind(module, optimizer, **options)
        return self

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        loss = self.base.step(loss_function, batch)
        with torch.no_grad():
            largest = torch.linalg.matrix_norm(self.head.weight.float(), 2)
            self.head.weight.div_((largest / self.norm).clamp(min=1).to(self.head.weight.dtype))
        return loss

    def reset(self, runs: Tensor | None = None) -> None:
        self.base.reset(runs)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
