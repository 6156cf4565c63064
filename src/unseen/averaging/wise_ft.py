"""WiSE-FT: between the weights that fine-tuning starts from and those it ends with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unseen.averaging.base import Averaging, StateDict, snapshot
from unseen.errors import InputError
from unseen.registry import averaging

ALPHAS = tuple(step / 10 for step in range(11))


@averaging.register(
    "wise-ft",
    summary="Interpolate between the weights before and after fine-tuning",
    paper="Wortsman et al. 2022, arXiv 2109.01903",
    search={"alpha": ("choice", [0.3, 0.4, 0.5, 0.6, 0.7])},
)
class WiseFT(Averaging):
    """(1 - alpha) theta_0 + alpha theta_1 over all of the network, the head included.

    alpha  share of the fine-tuned weights theta_1, in [0, 1]; None takes the best of 0, 0.1, ..., 1 on ID
           validation data, never on unseen domains
    after  share of training, in [0, 1), after which theta_0 is taken. From 0 on it is what training begins from
           (`fit(..., start=zero_shot_network(...).state_dict())`), whose head must know the classes; a new head is
           trained first (LP-FT): `warm-start(head_steps=150)` of 300 steps and after=0.5

    With the objective `bang` or `label-smoothing` this is BANG (Lin et al. 2024, arXiv 2309.17230).
    """

    elementwise = True

    def __init__(self, alpha: float | None = 0.5, after: float = 0.0):
        if alpha is not None and not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha}", "is not in [0, 1]", "Give a share such as 0.5, or None.")
        if not 0 <= after < 1:
            raise InputError(f"after {after}", "is not in [0, 1)", "Give a share of the steps, such as 0.1.")
        self.alpha, self.after = alpha, after
        self.chooses = alpha is None
        self._first = 0
        self._start: StateDict = {}
        self._last: StateDict = {}

    def setup(self, *, steps: int) -> None:
        self._first = round(self.after * steps)

    def begin(self, model: nn.Module) -> None:
        if self._first == 0:
            self._start = snapshot(model)

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        if self._first == step + 1:
            self._start = snapshot(model)
        if self._start:
            self._last = snapshot(model)

    def choose(self, score: Callable[[StateDict], float]) -> dict[str, Any]:
        if not self._start:
            return {}
        scores = {alpha: score(self._between(alpha)) for alpha in ALPHAS}
        self.alpha = max(scores, key=lambda alpha: scores[alpha])
        return {"alpha": self.alpha}

    def result(self) -> StateDict | None:
        if not self._last:
            return None
        return self._between(0.5 if self.alpha is None else self.alpha)

    @torch.no_grad()
    def _between(self, alpha: float) -> StateDict:
        return {
            name: self._start[name].lerp(last, alpha) if last.is_floating_point() else last.clone()
            for name, last in self._last.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "last": self._last}

    def load_state_dict(self, state: Any) -> None:
        self._start, self._last = dict(state["start"]), dict(state["last"])
