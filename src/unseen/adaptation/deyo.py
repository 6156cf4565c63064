"""DeYO: entropy is not enough; learn from predictions that need the object's shape (Lee et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unseen.adaptation.augmentations import shuffle_patches
from unseen.adaptation.output_losses import softmax_entropy
from unseen.adaptation.reliable_entropy import ReliableEntropy, mean_over
from unseen.adaptation.sar import LAST_STAGES
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


def probability_drop(logits: Tensor, destroyed: Tensor) -> Tensor:
    """(B,) PLPD: how far the predicted class's probability falls when the object is destroyed."""
    label = logits.argmax(1, keepdim=True)
    return (logits.softmax(1).gather(1, label) - destroyed.softmax(1).gather(1, label)).squeeze(1)


@adaptation.register(
    "deyo",
    summary="Tent on sure examples whose prediction falls when patches are shuffled",
    paper="Lee et al. 2024, arXiv 2403.07366",
    search={"learning_rate": ("log", 1e-5, 1e-2), "drop": ("choice", [0.1, 0.2, 0.3, 0.5])},
)
class DeYO(ReliableEntropy):
    """For images (B, C, H, W). Defaults are those of the authors' code for ImageNet-C with ResNet-50.

    They have a drop of 0.3 for its batch normalisation on i.i.d. batches, 0.2 elsewhere (mixed, correlated, one by one;
    group and layer normalisation), and 0.5 for the biased data of Waterbirds and ColoredMNIST.

    entropy_share  tau_Ent as a share of ln C: examples of at least this entropy are left out
    drop           tau_PLPD: examples whose probability falls by less when patches are shuffled are left out, too
    weight_share   Ent_0 as a share of ln C, where the weight of the entropy is one
    patches        the image is cut into patches x patches
    skip           dotted names of modules whose normalisation stays as it is, by default those of SAR
    Patches of the whole batch are shuffled (the authors': of its sure examples alone), so that batch normalisation
    always has the same company.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        momentum: float = 0.9,
        entropy_share: float = 0.5,
        drop: float = 0.2,
        weight_share: float = 0.4,
        patches: int = 4,
        skip: tuple[str, ...] = LAST_STAGES,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        self.drop, self.weight_share, self.patches = drop, weight_share, patches
        super().__init__(
            network,
            learning_rate=learning_rate,
            momentum=momentum,
            entropy_share=entropy_share,
            skip=skip,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        logits = self.network(x)
        entropy = softmax_entropy(logits)
        with torch.no_grad():
            destroyed = self.network(shuffle_patches(x, self.patches, self.generator))
            drop = probability_drop(logits, destroyed)
            chosen = (entropy < self.threshold(logits)) & (drop > self.drop)
            weights = (self.weight_share * math.log(logits.shape[1]) - entropy).exp() + drop.exp()
        return logits, mean_over(weights * entropy, chosen)
