"""What prompt tuning minimises besides cross-entropy: the contract, and the pull to the zero-shot prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unseen.errors import InputError


@dataclass(frozen=True)
class PromptStart:
    """What a regularizer sees before the first step.

    images  (N, D) features of length 1 of the training images; labels (N,)
    texts   (C + U, D) features of length 1 of the known names and the regularizer's own under a hand prompt
    known   C
    """

    images: Tensor
    labels: Tensor
    texts: Tensor
    known: int


@dataclass(frozen=True)
class PromptStep:
    """What a regularizer sees at a step.

    images     (B, D) features of length 1; labels (B,)
    known      (C, D) text features of length 1 under the learnt prompt, with gradients
    extra      (U, D) the same of the regularizer's own names
    scale      factor of cosines
    progress   share of the epochs that is over, in [0, 1)
    generator  source of all randomness but dropout's
    """

    images: Tensor
    labels: Tensor
    known: Tensor
    extra: Tensor
    scale: float
    progress: float
    generator: torch.Generator

    @property
    def cross_entropy(self) -> Tensor:
        """Of the batch's images among the known names: what plain tuning minimises."""
        return cross_entropy(self.scale * self.images @ self.known.T, self.labels)


class PromptRegularizer(nn.Module):
    """Gives the whole loss of a step; its parameters are trained together with the prompts."""

    names: tuple[str, ...] = ()
    """Further names that are encoded under the learnt prompt at every step."""

    knows_judged_names = False
    """Whether `names` may hold classes that the tuner is judged by."""

    def setup(self, start: PromptStart) -> None:
        """Called once before the first step."""

    def forward(self, step: PromptStep) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward(step) -> Tensor")


class ZeroShotPenalty(PromptRegularizer):
    """Cross-entropy + weight * mean over names of |w - w_zero-shot|^2 (KgCoOp: Yao et al. 2023, arXiv 2303.13283)."""

    def __init__(self, weight: float = 8.0):
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InputError("weight", f"is {weight}", "Give 0 or a positive number.")
        self.weight = weight

    def setup(self, start: PromptStart) -> None:
        self.zero_shot = start.texts[: start.known]

    def forward(self, step: PromptStep) -> Tensor:
        distance = (step.known - self.zero_shot).square().sum(1).mean()
        return step.cross_entropy + self.weight * distance
