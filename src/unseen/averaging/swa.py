"""SWA: mean of the weights along the last part of training."""

from __future__ import annotations

from typing import Any

from torch import nn

from unseen.averaging.base import Averaging, RunningMean, StateDict
from unseen.registry import averaging


@averaging.register(
    "swa",
    summary="Mean of the weights over the last part of training",
    paper="Izmailov et al. 2018, arXiv 1803.05407",
)
class SWA(Averaging):
    """Every `every`-th state goes into one mean, from the share `start` in [0, 1) of training on."""

    elementwise = True

    def __init__(self, start: float = 0.5, every: int = 1):
        self.start, self.every = start, every
        self._first, self._mean = 0, RunningMean()

    def setup(self, *, steps: int) -> None:
        self._first = int(self.start * steps)

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        if step >= self._first and (step - self._first) % self.every == 0:
            self._mean.add(model.state_dict())

    def result(self) -> StateDict | None:
        return self._mean.mean or None

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._mean.count, "mean": self._mean.mean}

    def load_state_dict(self, state: Any) -> None:
        self._mean.count, self._mean.mean = state["count"], state["mean"]
