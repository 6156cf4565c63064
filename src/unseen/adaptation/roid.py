"""ROID: weighted soft likelihood ratio, weight ensembling and prior correction (Marsden et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.adaptation.augmentations import Augment
from unseen.adaptation.base import GradientAdaptation, State
from unseen.adaptation.named_augmentations import find_augmentation
from unseen.adaptation.output_losses import (
    soft_likelihood_ratio,
    softmax_entropy,
    symmetric_cross_entropy,
    unit_range,
)
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


def certainty_and_diversity_weights(logits: Tensor, average: Tensor, temperature: float) -> Tensor:
    """(B,) weights: exp(diversity x certainty / temperature), 0 for examples less diverse than the mean.

    logits   (B, C)
    average  (C,) moving average of the probabilities
    Diversity is 1 - the cosine between probabilities and average, certainty minus the entropy, both scaled to
    [0, 1] over the batch.
    """
    diversity = unit_range(1 - torch.cosine_similarity(average[None], logits.softmax(1), dim=1))
    certainty = unit_range(-softmax_entropy(logits))
    weights = (diversity * certainty / temperature).exp()
    return torch.where(diversity < diversity.mean(), 0, weights)


def prior_correction(logits: Tensor) -> Tensor:
    """Logits plus the logarithm of the smoothed label distribution of the batch.

    The share of class c is its mean probability, smoothed by gamma = max(1 / B, 1 / C) / its maximum. (The
    authors' code multiplies logits by it, which favours likely classes only where logits are positive.)
    """
    prior = logits.softmax(1).mean(0)
    smooth = max(1 / len(logits), 1 / logits.shape[1]) / prior.max()
    return logits + ((prior + smooth) / (1 + smooth * logits.shape[1])).log()


@adaptation.register(
    "roid",
    summary="Weighted soft likelihood ratio; weights drawn back to the trained ones; prior correction",
    paper="Marsden et al. 2024, arXiv 2306.00650",
    search={"learning_rate": ("log", 1e-5, 1e-2), "keep": ("choice", [0.95, 0.99, 0.999])},
)
class ROID(GradientAdaptation):
    """Defaults are the paper's for ImageNet-C.

    temperature    of the weights
    keep           share of the adapted weights after each step; the rest is the trained ones (weight ensembling)
    momentum_probabilities  of the moving average of probabilities that measures diversity
    augment        changes inputs for the consistency loss: a name of `AUGMENTATIONS` or a function
    The whole batch is changed (the authors': its examples of positive weight alone), so that batch normalisation
    always has the same company.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        momentum: float = 0.9,
        temperature: float = 1 / 3,
        keep: float = 0.99,
        momentum_probabilities: float = 0.9,
        augment: str | Augment = "images",
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        self.temperature, self.keep = temperature, keep
        self.momentum_probabilities, self.augment = momentum_probabilities, find_augmentation(augment)
        super().__init__(
            network,
            learning_rate=learning_rate,
            optimizer="sgd",
            momentum=momentum,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def begin(self) -> State:
        return {"average": None}

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        probabilities, average = logits.detach().softmax(1), self.memory["average"]
        if average is None:
            average = torch.full_like(probabilities[0], 1 / logits.shape[1])
        weights = certainty_and_diversity_weights(logits.detach(), average, self.temperature)
        momentum = self.momentum_probabilities
        self.memory["average"] = momentum * average + (1 - momentum) * probabilities.mean(0)
        changed = self.network(self.augment(x, self.generator))
        losses = soft_likelihood_ratio(logits) + symmetric_cross_entropy(changed, logits)
        return logits, (weights * losses).mean()

    def answer(self, x: Inputs) -> Tensor:
        return prior_correction(super().answer(x).detach())

    def descend(self, loss: Tensor) -> None:
        super().descend(loss)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.lerp_(self._source[name], 1 - self.keep)
