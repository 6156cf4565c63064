"""MEMO: one marginal entropy step on augmentations of each single example (Zhang et al. 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unseen.adaptation.augmentations import Augment
from unseen.adaptation.base import GradientAdaptation
from unseen.adaptation.named_augmentations import find_augmentation
from unseen.adaptation.normalisation import use_test_statistics
from unseen.adaptation.output_losses import marginal_entropy
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.shift import count_rows


@adaptation.register(
    "memo",
    summary="For each example alone: agree on its augmentations, answer, forget",
    paper="Zhang et al. 2022, arXiv 2110.09506",
    search={"learning_rate": ("log", 1e-5, 1e-2), "prior": ("choice", [8.0, 16.0, 64.0])},
)
class MEMO(GradientAdaptation):
    """Defaults are the paper's for ImageNet-C with ResNet-50; for CIFAR-10 it has 0.005 and 32 augmentations.

    augmentations  of each example in a step
    augment        changes inputs: a name of `AUGMENTATIONS` or a function; by default images, by AugMix as in the paper
    prior          examples that the statistics of training count for in batch normalisation; all copies of an example
                   together count for one, as in the authors' code
    All weights are learnt. Examples never learn from each other, so batches only save calls, and nothing is
    remembered.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        optimizer: Literal["sgd", "adam"] = "sgd",
        momentum: float = 0.0,
        augmentations: int = 64,
        augment: str | Augment = "augmix",
        steps: int = 1,
        prior: float = 16.0,
        *,
        seed: int = 0,
    ):
        if augmentations < 1:
            raise InputError("augmentations", f"are {augmentations}", "Give at least one.")
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

    def _configure(self) -> None:
        use_test_statistics(self.network, self.prior, examples=1)
        super()._configure()

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def answer(self, x: Inputs) -> Tensor:
        answers = [
            self._answer_one(map_tensors(lambda t, row=row: t[row : row + 1], x))  # type: ignore[misc]
            for row in range(count_rows(x))
        ]
        self.restore_weights()
        return torch.cat(answers)

    def _answer_one(self, x: Inputs) -> Tensor:
        self.restore_weights()
        copies = map_tensors(lambda t: t.expand(self.augmentations, *t.shape[1:]), x)
        for _ in range(self.steps):
            self.descend(marginal_entropy(self.network(self.augment(copies, self.generator))))
        with torch.no_grad():
            return self.network(x)
