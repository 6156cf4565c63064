"""ProtoGCD: one prototype classifier for known and for new classes, taught by its own adaptive pseudo-labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.prototypes import prototype_separation
from unseen.objectives.base import Loss
from unseen.objectives.pseudo_labels import AdaptivePseudoLabels
from unseen.objectives.supcon import supcon_loss

UNLABELLED = -1
"""Stands for the label of an example that has none."""


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats, from 0 to log K, of the mean softmax of logits (B, K): how evenly classes are used."""
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


class ProtoGCDLoss(nn.Module):
    """The loss of generalized category discovery with prototypes (Ma et al. 2025, arXiv 2504.03755).

    (1 - supervised) [pseudo-labels + `entropy` (log K - marginal entropy) + `separation` x prototype separation
    + contrast of views] + supervised [cross-entropy + supervised contrast, of labelled examples]

    targets      teacher to targets: each view is taught by the other, labelled examples too
    entropy      weight 2 in the paper; it assumes classes of like sizes, and 0 leaves it out
    separation   weight 0.1 for CIFAR-100, 0.05 for CUB
    supervised   weight of what reads labels, in [0, 1]
    temperature  of the student
    The contrastive terms act on projections: views at temperature 1, labels at 0.07.
    """

    def __init__(
        self,
        targets: AdaptivePseudoLabels = AdaptivePseudoLabels(),
        entropy: float = 2.0,
        separation: float = 0.1,
        supervised: float = 0.35,
        temperature: float = 0.1,
    ):
        super().__init__()
        for name, value in (("entropy", entropy), ("separation", separation)):
            if not value >= 0:
                raise InputError(name, f"is {value}", "Give a weight from 0.")
        if not 0 <= supervised <= 1:
            raise InputError("supervised", f"is {supervised}", "Give a weight from 0 to 1.")
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 0.1.")
        self.targets, self.entropy, self.separation = targets, entropy, separation
        self.supervised, self.temperature = supervised, temperature

    def forward(
        self, cosines: Tensor, y: Tensor, prototypes: Tensor, projections: Tensor, progress: float
    ) -> Loss:
        """Loss of two views of B examples.

        cosines      (B, 2, K) of features and prototypes
        y            (B,) labels of old classes, `UNLABELLED` where there is none
        prototypes   (K, D), unit
        projections  (B, 2, E), unit
        progress     share of the training done, in [0, 1]
        """
        if cosines.dim() != 3 or cosines.shape[1] != 2 or cosines.shape[2] != len(prototypes):
            raise InputError(
                "cosines", f"have shape {tuple(cosines.shape)}", f"Give (B, 2, {len(prototypes)})."
            )
        logits = cosines / self.temperature
        known = y != UNLABELLED
        parts = {
            "pseudo": self._pseudo(cosines, logits, progress),
            "entropy": math.log(len(prototypes)) - marginal_entropy(logits.flatten(0, 1)),
            "separation": prototype_separation(prototypes),
            "views": supcon_loss(projections, None, 1.0),
            "labels": 0 * logits.sum(),
            "contrast": 0 * logits.sum(),
        }
        if known.any():
            labels = y[known]
            parts["labels"] = nn.functional.cross_entropy(
                logits[known].flatten(0, 1), labels.repeat_interleave(2)
            )
            parts["contrast"] = supcon_loss(projections[known], labels, 0.07)
        alone = parts["pseudo"] + self.entropy * parts["entropy"] + parts["views"]
        alone = alone + self.separation * parts["separation"]
        told = parts["labels"] + parts["contrast"]
        return Loss((1 - self.supervised) * alone + self.supervised * told, parts)

    def _pseudo(self, cosines: Tensor, logits: Tensor, progress: float) -> Tensor:
        losses = [
            nn.functional.cross_entropy(logits[:, view], self.targets(cosines[:, 1 - view], progress))
            for view in (0, 1)
        ]
        return torch.stack(losses).mean()


def simgcd_loss(**options: float) -> ProtoGCDLoss:
    """The soft-target baseline: SimGCD (Wen et al. 2023, arXiv 2211.11727), without adaptive targets or separation.

    options  of `ProtoGCDLoss`
    """
    return ProtoGCDLoss(AdaptivePseudoLabels(schedule=0.0), separation=0.0, **options)  # type: ignore[arg-type]
