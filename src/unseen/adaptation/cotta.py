"""CoTTA: a weight-averaged teacher over augmentations, and weights that are restored at random (Wang et al. 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.adaptation.augmentations import Augment
from unseen.adaptation.base import GradientAdaptation, State
from unseen.adaptation.named_augmentations import find_augmentation
from unseen.adaptation.output_losses import soft_cross_entropy
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


@adaptation.register(
    "cotta",
    summary="All weights follow a weight-averaged teacher; a few are restored at random",
    paper="Wang et al. 2022, arXiv 2203.13591",
    search={
        "learning_rate": ("log", 1e-5, 1e-2),
        "restore": ("choice", [0.001, 0.01, 0.1]),
        "confidence": ("choice", [0.1, 0.72, 0.92]),
    },
)
class CoTTA(GradientAdaptation):
    """Defaults are the paper's for CIFAR-10-C; for ImageNet-C it has SGD with 0.01, restore 0.001, confidence 0.1.

    teacher_momentum  of the teacher's weights, in [0, 1)
    restore           probability of a weight to return to its trained value after a step
    confidence        when the trained network's mean confidence on the batch is lower, the teacher answers with the
                      mean logits over augmentations, otherwise with those of the input itself
    augmentations     their number
    augment           changes inputs: a name of `AUGMENTATIONS` or a function of inputs and generator
    The answer is the teacher's. The loss is the paper's cross-entropy; the authors' code for ImageNet-C takes the mean
    of both directions.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 1e-3,
        optimizer: Literal["sgd", "adam"] = "adam",
        momentum: float = 0.9,
        teacher_momentum: float = 0.999,
        restore: float = 0.01,
        confidence: float = 0.92,
        augmentations: int = 32,
        augment: str | Augment = "images",
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        if not (0 <= teacher_momentum < 1 and 0 <= restore <= 1 and augmentations >= 1):
            raise InputError(
                "teacher_momentum, restore or augmentations",
                f"are {teacher_momentum}, {restore} and {augmentations}",
                "Give a momentum in [0, 1), a probability and a number from 1.",
            )
        self.teacher_momentum, self.restore, self.confidence = teacher_momentum, restore, confidence
        self.augmentations, self.augment = augmentations, find_augmentation(augment)
        super().__init__(
            network,
            learning_rate=learning_rate,
            optimizer=optimizer,
            momentum=momentum,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def begin(self) -> State:
        return {"teacher": {name: value.clone() for name, value in self._source.items()}}

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            targets = self._targets(x)
        return targets, soft_cross_entropy(self.network(x), targets).mean()

    def _targets(self, x: Inputs) -> Tensor:
        """The teacher's logits (B, C)."""
        trained = functional_call(self.network, self._source, (x,))
        if trained.softmax(1).amax(1).mean() >= self.confidence:
            return functional_call(self.network, self.memory["teacher"], (x,))
        total = sum(
            functional_call(self.network, self.memory["teacher"], (self.augment(x, self.generator),))
            for _ in range(self.augmentations)
        )
        return total / self.augmentations

    def descend(self, loss: Tensor) -> None:
        super().descend(loss)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self.memory["teacher"][name].lerp_(parameter, 1 - self.teacher_momentum)
                back = torch.rand(parameter.shape, generator=self.generator) < self.restore
                parameter.copy_(torch.where(back.to(parameter.device), self._source[name], parameter))
