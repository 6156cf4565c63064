"""Local mean teacher: the mean of the latest states in a window that grows with training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from unseen.averaging.base import Averaging, StateDict, snapshot
from unseen.errors import InputError
from unseen.registry import averaging


@averaging.register(
    "local-mean-teacher",
    summary="Decaying mean of the latest states, over a window that grows with training",
    paper="OGEN: Zang et al. 2024, arXiv 2401.15914",
)
class LocalMeanTeacher(Averaging):
    """Mean of the states kept in the last m + 1 keepings; m grows from window[0] to window[1].

    m_t = floor((1 + cos(pi (t_max + t) / t_max)) (m_max - m_min) / 2) + m_min, with t keepings of t_max in all.
    `result()` may be asked at any time: a teacher that forgets the first epochs, to distil from while training.

    window    (m_min, m_max); no longer than the training has keepings. None: (3, 9), or what a shorter training allows
    schedule  "cosine_growth", or "constant" for m_max throughout
    decay     weight of a state relative to the next younger one, in (0, 1]; 1 is the plain mean
    every     updates between keepings; None keeps 20 states a training
    """

    elementwise = True

    def __init__(
        self,
        window: tuple[int, int] | None = None,
        schedule: Literal["cosine_growth", "constant"] = "cosine_growth",
        decay: float = 0.9,
        every: int | None = None,
    ):
        low, high = window or (3, 9)
        if not 0 <= low <= high:
            raise InputError("window", f"is {(low, high)}", "Give 0 <= smallest <= largest.")
        if schedule not in ("cosine_growth", "constant"):
            raise InputError("schedule", f"is {schedule!r}", "Give 'cosine_growth' or 'constant'.")
        if not 0 < decay <= 1:
            raise InputError("decay", f"is {decay}", "Give a number above 0 and up to 1.")
        if every is not None and every < 1:
            raise InputError("every", f"is {every}", "Give a whole number from 1, or None.")
        self.low, self.high, self.fixed = low, high, window is not None
        self.schedule, self.decay, self.every = schedule, decay, every
        self._kept: list[StateDict] = []
        self._seen = 0

    def setup(self, *, steps: int) -> None:
        self._distance = self.every or max(1, steps // 20)
        self._keepings = steps // self._distance
        if not self.fixed:
            self.low, self.high = min(self.low, self._keepings), min(self.high, self._keepings)
        if self.high > self._keepings:
            raise InputError(
                "window",
                f"reaches {self.high} states back, but {steps} updates keep {self._keepings}",
                "Train longer, keep more often, or give a smaller window.",
            )

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        if (step + 1) % self._distance == 0:
            self._seen += 1
            self._kept = [*self._kept, snapshot(model)][-(self.size(self._seen) + 1) :]

    def size(self, keeping: int) -> int:
        """m_t: how many states back the window reaches after that many keepings."""
        if self.schedule == "constant":
            return self.high
        turn = math.pi * (1 + keeping / self._keepings)
        # rounding must not lose the last step to m_max
        return math.floor((1 + math.cos(turn)) * (self.high - self.low) / 2 + 1e-9) + self.low

    def result(self) -> StateDict | None:
        mean: StateDict = {}
        weight = 0.0
        for state in self._kept:
            weight = self.decay * weight + 1
            for name, value in state.items():
                if name in mean and value.is_floating_point():
                    mean[name].lerp_(value, 1 / weight)
                else:
                    mean[name] = value.clone()
        return mean or None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept, self._seen = list(state["kept"]), state["seen"]
