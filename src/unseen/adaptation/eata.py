"""EATA: adapt on reliable and new examples only, and stay near the trained weights (Niu et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unseen.adaptation.base import State
from unseen.adaptation.output_losses import softmax_entropy
from unseen.adaptation.reliable_entropy import ReliableEntropy, mean_over, moving_average
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


def sample_weights(logits: Tensor, average: Tensor | None, threshold: float, similarity: float) -> Tensor:
    """(B,) weight of each example's entropy; 0 where it is unsure or says what is known already.

    logits      (B, C)
    average     (C,) mean probabilities of earlier examples that were learnt from, or None
    threshold   E_0: examples of at least this entropy (nats) are unreliable
    similarity  cosine between prediction and average from which an example is redundant
    Equations 3 and 5: exp(E_0 - entropy) for the others.
    """
    entropy = softmax_entropy(logits)
    chosen = entropy < threshold
    if average is not None:
        chosen &= torch.cosine_similarity(average[None], logits.softmax(1), dim=1).abs() < similarity
    return torch.where(chosen, (threshold - entropy).exp(), 0)


@adaptation.register(
    "eata",
    summary="Tent on reliable, non-redundant examples, held near the trained weights by a Fisher penalty",
    paper="Niu et al. 2022, arXiv 2204.02610",
    search={
        "learning_rate": ("log", 1e-5, 1e-2),
        "similarity": ("choice", [0.05, 0.1, 0.2, 0.4]),
        "fisher_weight": ("log", 1.0, 5000.0),
    },
)
class EATA(ReliableEntropy):
    """Defaults are the paper's for ImageNet-C; for CIFAR-10-C it has a learning rate of 0.005, similarity 0.4,
    fisher_weight 1.

    entropy_share  E_0 as a share of ln C, the largest entropy
    similarity     epsilon: predictions this similar to the average of earlier ones teach nothing
    fisher_weight  beta of the penalty; its Fisher information comes from `prepare`, called with training inputs
                   in batches (the authors': 2,000 images by 64; like theirs it squares gradients of batch means)
    """

    needs_source = True

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        momentum: float = 0.9,
        entropy_share: float = 0.4,
        similarity: float = 0.05,
        fisher_weight: float = 2000.0,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        self.similarity, self.fisher_weight = similarity, fisher_weight
        super().__init__(
            network,
            learning_rate=learning_rate,
            momentum=momentum,
            entropy_share=entropy_share,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def prepare(self, source: Iterable[Inputs]) -> None:
        """Estimate the Fisher information on batches of training inputs, with the network's own labels."""
        self.reset()
        total, count = [torch.zeros_like(p) for p in self._parameters.values()], 0
        for x in source:
            with torch.enable_grad():
                logits = self.network(x)
                loss = nn.functional.cross_entropy(logits, logits.argmax(1))
                gradients = torch.autograd.grad(
                    loss, list(self._parameters.values()), allow_unused=True, materialize_grads=True
                )
            for sum_of_squares, gradient in zip(total, gradients, strict=True):
                sum_of_squares += gradient.square()
            count += 1
        if not count:
            raise InputError("source", "has no batch", "Give inputs of the training distribution.")
        fisher = {name: value / count for name, value in zip(self._parameters, total, strict=True)}
        self.prepared = {"fisher": fisher}

    def begin(self) -> State:
        return {"average": None}

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        if self.fisher_weight and not self.prepared:
            raise InputError(
                "eata",
                "has no Fisher information of the trained weights",
                "Call prepare(batches of training inputs) first, or choose eta.",
            )
        logits, average = self.network(x), self.memory["average"]
        with torch.no_grad():
            weights = sample_weights(logits, average, self.threshold(logits), self.similarity)
            chosen = weights > 0
        loss = mean_over(weights * softmax_entropy(logits), chosen)
        if loss is not None:
            learnt = logits.detach()[chosen].softmax(1).mean(0)
            self.memory["average"] = moving_average(average, learnt)
            if self.fisher_weight:
                loss = loss + self._penalty()
        return logits, loss

    def _penalty(self) -> Tensor:
        """beta sum of Fisher times squared distance from the trained weights (equation 8)."""
        distances = (
            (self.prepared["fisher"][name] * (value - self._source[name]).square()).sum()
            for name, value in self._parameters.items()
        )
        return self.fisher_weight * torch.stack(list(distances)).sum()


@adaptation.register(
    "eta",
    summary="EATA without its penalty: needs no training inputs",
    paper="Niu et al. 2022, arXiv 2204.02610",
    search={"learning_rate": ("log", 1e-5, 1e-2), "similarity": ("choice", [0.05, 0.1, 0.2, 0.4])},
)
class ETA(EATA):
    """EATA's choice and weights of examples alone."""

    needs_source = False

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        momentum: float = 0.9,
        entropy_share: float = 0.4,
        similarity: float = 0.05,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        super().__init__(
            network,
            learning_rate,
            momentum,
            entropy_share,
            similarity,
            fisher_weight=0.0,
            steps=steps,
            prior=prior,
            seed=seed,
        )
