"""SWAD: mean of all weights along the valley of the validation loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unseen.averaging.base import Averaging, RunningMean, StateDict
from unseen.errors import InputError
from unseen.registry import averaging


@averaging.register(
    "swad",
    summary="Mean of all weights along the valley of the validation loss",
    paper="Cha et al. 2021, arXiv 2102.08604",
    search={"tolerance_ratio": ("uniform", 0.1, 0.5)},
)
class SWAD(Averaging):
    """Dense averaging from when the validation loss stops falling until it rises (Algorithm 1, "LossValley").

    n_converge       the valley begins at the first evaluation that stays the lowest for so many evaluations
    n_tolerance      it ends when so many evaluations in a row lie above the threshold; these are left out
    tolerance_ratio  threshold: (1 + ratio) times the mean loss of those `n_converge` evaluations

    Every iteration counts: those between two evaluations form a segment, and the segments from the beginning
    of the valley to its end are averaged, weighted by their number of iterations. As in the official code, it
    reaches back over the earlier segments (up to n_tolerance - n_converge) whose losses are below the
    threshold, except the first of them. The official code adds some segments near the beginning twice; here
    each counts once.

    If the loss never stops falling, no valley begins, and the result is the mean of the last segment (as in
    the official code); before the first evaluation it is the mean so far. Beside the running mean, at most
    max(n_converge, n_tolerance) segments are kept.
    """

    def __init__(self, n_converge: int = 3, n_tolerance: int = 6, tolerance_ratio: float = 0.3):
        for name, value in (("n_converge", n_converge), ("n_tolerance", n_tolerance)):
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number of evaluations from 1.")
        if not tolerance_ratio >= 0:
            raise InputError("tolerance_ratio", f"is {tolerance_ratio}", "Give a number from 0.")
        self.n_converge, self.n_tolerance, self.tolerance_ratio = n_converge, n_tolerance, tolerance_ratio
        self._segment = RunningMean()
        self._valley = RunningMean()
        self._recent: list[tuple[float, RunningMean]] = []
        """Losses and means of the last segments; once the valley has begun, of those not yet decided upon."""
        self.threshold: float | None = None
        self.ended = False

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        if self.ended:
            return
        self._segment.add(model.state_dict())
        if validation_loss is None:
            return
        self._recent.append((validation_loss, self._segment))
        self._segment = RunningMean()
        if self.threshold is None:
            self._look_for_beginning()
        else:
            self._look_for_end(self.threshold)

    def _look_for_beginning(self) -> None:
        self._recent = self._recent[-max(self.n_converge, self.n_tolerance) :]
        window = [loss for loss, _ in self._recent[-self.n_converge :]]
        if len(window) < self.n_converge or min(window) < window[0]:
            return
        self.threshold = (1 + self.tolerance_ratio) * sum(window) / len(window)
        first = len(self._recent) - self.n_converge
        back = first
        while back > 0 and self._recent[back - 1][0] <= self.threshold:
            back -= 1
        self._recent = self._recent[min(back + 1, first) :]
        self._settle(self.n_tolerance - 1)

    def _look_for_end(self, threshold: float) -> None:
        # until `n_tolerance` evaluations have followed it, the low beginning is among the recent ones
        if all(loss > threshold for loss, _ in self._recent):
            self.ended, self._recent = True, []
        else:
            self._settle(self.n_tolerance - 1)

    def _settle(self, undecided: int) -> None:
        """Move all but the last `undecided` segments into the mean of the valley."""
        while len(self._recent) > undecided:
            _, segment = self._recent.pop(0)
            self._valley.add(segment.mean, segment.count)

    def result(self) -> StateDict | None:
        if self.threshold is None:
            last = self._recent[-1][1] if self._recent else self._segment
            return last.mean or None
        whole = RunningMean()
        if self._valley.count:
            whole.add(self._valley.mean, self._valley.count)
        inside = [index for index, (loss, _) in enumerate(self._recent) if loss <= self.threshold]
        for _, segment in self._recent[: inside[-1] + 1 if inside else 0]:
            whole.add(segment.mean, segment.count)
        return whole.mean

    def state_dict(self) -> dict[str, Any]:
        return {
            "segment": _dump(self._segment),
            "valley": _dump(self._valley),
            "recent": [(loss, _dump(segment)) for loss, segment in self._recent],
            "threshold": self.threshold,
            "ended": self.ended,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._segment, self._valley = _load(state["segment"]), _load(state["valley"])
        self._recent = [(loss, _load(segment)) for loss, segment in state["recent"]]
        self.threshold, self.ended = state["threshold"], state["ended"]


def _dump(mean: RunningMean) -> dict[str, Any]:
    return {"count": mean.count, "mean": dict(mean.mean)}


def _load(state: Mapping[str, Any]) -> RunningMean:
    mean = RunningMean()
    mean.count, mean.mean = state["count"], dict(state["mean"])
    return mean
