"""Pseudo-labels whose hardness adapts: to how sure the teacher is of an example, and to how far training has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError, nearest

CONFIDENCES = ("ratio", "margin", "max")


@dataclass(frozen=True)
class Ramp:
    """A share that grows linearly from 0 to 1 until `until` of the training has passed, and then stays."""

    until: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise InputError("until", f"is {self.until}", "Give a share of the training above 0, at most 1.")

    def __call__(self, progress: float) -> float:
        return min(1.0, progress / self.until)


@dataclass(frozen=True)
class AdaptivePseudoLabels:
    """A teacher's logits and the progress of training to targets: one-hot for the surest examples, soft for the rest.

    schedule     share r of a batch that is hard, as a function of progress in [0, 1], or a number: 0 is all soft,
                 1 all hard; of B examples floor(B r) are
    confidence   "ratio" of the two largest probabilities (ProtoGCD), their "margin", or the "max"imum
    temperature  of the teacher, lower than the student's
    Ma et al. 2025, arXiv 2504.03755 (dual-level adaptive pseudo-labelling); as good for self-training and adaptation.
    """

    schedule: float | Callable[[float], float] = Ramp()
    confidence: Literal["ratio", "margin", "max"] = "ratio"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.confidence not in CONFIDENCES:
            raise InputError("confidence", f"is {self.confidence!r}", nearest(self.confidence, CONFIDENCES))
        if not self.temperature > 0:
            raise InputError("temperature", f"is {self.temperature}", "Give a positive number, such as 0.05.")

    @torch.no_grad()
    def __call__(self, logits: Tensor, progress: float = 1.0) -> Tensor:
        """(B, K) targets, without a gradient, from logits (B, K)."""
        probabilities = (logits.detach() / self.temperature).softmax(1)
        hard = one_hot_of(probabilities)
        surest = self.certainty(probabilities).topk(int(len(logits) * self.hard_share(progress))).indices
        return probabilities.index_copy(0, surest, hard[surest])

    def hard_share(self, progress: float) -> float:
        """r at a progress in [0, 1]."""
        if not 0 <= progress <= 1:
            raise InputError("progress", f"is {progress}", "Give the share of the training done, 0 to 1.")
        share = self.schedule(progress) if callable(self.schedule) else self.schedule
        if not 0 <= share <= 1:
            raise InputError("schedule", f"gives the share {share}", "Give shares from 0 to 1.")
        return share

    def certainty(self, probabilities: Tensor) -> Tensor:
        """(B,) how sure the teacher is of each example; probabilities (B, K)."""
        if self.confidence == "max" or probabilities.shape[1] == 1:
            return probabilities.amax(1)
        first, second = probabilities.topk(2, 1).values.unbind(1)
        if self.confidence == "margin":
            return first - second
        return first / second.clamp(min=torch.finfo(probabilities.dtype).tiny)


def one_hot_of(probabilities: Tensor) -> Tensor:
    """The likeliest class of each row as one-hot (B, K), in the dtype of the probabilities."""
    hard = torch.zeros_like(probabilities)
    return hard.scatter(1, probabilities.argmax(1, keepdim=True), 1.0)
