"""LAWA: mean of the latest few states, taken at even distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unseen.averaging.base import Averaging, RunningMean, StateDict, snapshot
from unseen.errors import InputError
from unseen.registry import averaging


@averaging.register(
    "lawa",
    summary="Mean of the latest few states, taken at even distances",
    paper="Kaddour 2022, arXiv 2209.14981; Sanyal et al. 2023, arXiv 2306.03241",
    search={"states": ("choice", [3, 5, 10])},
)
class LAWA(Averaging):
    """Mean of the last `states` states, of which one is kept after every `every` updates.

    Unlike SWA it forgets: what lies further back than states x every updates has no part. The paper takes a state
    at the end of each epoch. All `states` of them are in memory.
    """

    elementwise = True

    def __init__(self, states: int = 5, every: int = 10):
        for name, value in (("states", states), ("every", every)):
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number from 1.")
        self.states, self.every = states, every
        self._kept: list[StateDict] = []

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        if (step + 1) % self.every == 0:
            self._kept = [*self._kept, snapshot(model)][-self.states :]

    def result(self) -> StateDict | None:
        mean = RunningMean()
        for state in self._kept:
            mean.add(state)
        return mean.mean or None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept = list(state["kept"])
