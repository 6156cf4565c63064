"""SHOT: the head's hypothesis stays, features move to it by information and centroids (Liang et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.adaptation.base import GradientAdaptation
from unseen.adaptation.output_losses import information
from unseen.networks import Network
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs

WEIGHT_DECAY = 1e-3


@torch.no_grad()
def centroid_labels(features: Tensor, probabilities: Tensor) -> Tensor:
    """(B,) pseudo-labels: the class whose centroid is nearest by cosine, for features (B, D).

    Centroids are means weighted by `probabilities` (B, C), then once more means of the labelled examples.
    Classes that no example has keep out of the second round. (The authors' code appends a constant one to the features,
    and in the first round leaves out classes that the network does not predict; the paper does neither.)
    """
    unit = nn.functional.normalize(features, dim=1)
    centroids = probabilities.T @ unit
    labels = (unit @ nn.functional.normalize(centroids, dim=1).T).argmax(1)
    members = nn.functional.one_hot(labels, probabilities.shape[1]).to(unit.dtype)
    similarity = unit @ nn.functional.normalize(members.T @ unit, dim=1).T
    return similarity.masked_fill(members.sum(0) == 0, -torch.inf).argmax(1)


@adaptation.register(
    "shot",
    summary="Features learn to be informative and near centroids of a fixed head's classes",
    paper="Liang et al. 2020, arXiv 2002.08546",
    search={"learning_rate": ("log", 1e-5, 1e-2), "pseudo_labels": ("choice", [0.1, 0.3, 1.0])},
)
@adaptation.register(
    "shot-im",
    summary="SHOT's information maximisation alone, without pseudo-labels",
    paper="Liang et al. 2020, arXiv 2002.08546",
    preset={"pseudo_labels": 0.0},
    search={"learning_rate": ("log", 1e-5, 1e-2)},
)
class SHOT(GradientAdaptation):
    """All weights but the head's are learnt. Defaults are the paper's for pretrained backbones.

    pseudo_labels  beta, weight of the cross-entropy on pseudo-labels
    The paper goes over all target examples for 15 epochs and takes centroids of all of them; on a stream it is one
    batch after the other, with centroids of that batch.
    """

    needs_head = True
    network: Network

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        pseudo_labels: float = 0.3,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        self.pseudo_labels = pseudo_labels
        super().__init__(
            network,
            learning_rate=learning_rate,
            optimizer="sgd",
            momentum=momentum,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"featurizer.{n}": p for n, p in self.network.featurizer.named_parameters()}

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            list(self._parameters.values()),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=WEIGHT_DECAY,
            nesterov=self.momentum > 0,
        )

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor]:
        features = self.network.featurizer(x)
        logits = self.network.head(features)
        loss = -information(logits)
        if self.pseudo_labels:
            labels = centroid_labels(features.detach(), logits.detach().softmax(1))
            loss = loss + self.pseudo_labels * nn.functional.cross_entropy(logits, labels)
        return logits, loss
