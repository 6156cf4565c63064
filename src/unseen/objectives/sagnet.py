"""SagNet: predict from content while styles are mixed up, and from features that tell no class by their style."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

EPSILON = 1e-5  # added to variances, as normalisation layers do


def content_and_style(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each example's features (B, F) as content (B, F) of mean 0 and variance 1, mean and variance (B, 1)."""
    variance, mean = torch.var_mean(features, 1, keepdim=True)
    variance = variance + EPSILON
    return (features - mean) * variance.rsqrt(), mean, variance


def randomise_style(
    content: Tensor, mean: Tensor, variance: Tensor, partner: Tensor, share: Tensor
) -> Tensor:
    """(B, F) each content in a style between its own and its partner's (equation 2).

    Means and variances are mixed by `share` (B, 1) of its own and 1 - share of the partner's (B,) position.
    """
    mixed_mean = share * mean + (1 - share) * mean[partner]
    mixed_variance = share * variance + (1 - share) * variance[partner]
    return content * mixed_variance.sqrt() + mixed_mean


def randomise_content(content: Tensor, mean: Tensor, variance: Tensor, partner: Tensor) -> Tensor:
    """(B, F) the partner's content, a constant for the gradient, in each example's own style (equation 4)."""
    return content.detach()[partner] * variance.sqrt() + mean


@objectives.register(
    "sagnet",
    summary="Style-agnostic network: content in random styles, against a head that reads styles",
    paper="Nam et al. 2021, arXiv 1910.11645",
    search={"adversarial_weight": ("log", 1e-2, 1e1)},
)
class SagNet(Objective):
    """Loss of the head on features in random styles, + loss of a style head on random contents,
    + adversarial_weight * cross-entropy of the style head's prediction with the uniform one (algorithm 1).

    Each term trains whom the paper lets it train: the first the network, the second the style head alone, the
    third the featurizer alone. There they take turns, with three passes and updates; here it is one of each.
    As in DomainBed, the style is the mean and deviation over an example's features in front of the head (the
    paper cuts a ResNet before its last stage), and predictions are the plain network's.

    style_seed  partners and shares are a function of it and of the training step
    """

    needs_features = True

    def __init__(self, adversarial_weight: float = 0.1, style_seed: int = 0):
        super().__init__()
        if not (math.isfinite(adversarial_weight) and adversarial_weight >= 0):
            raise InputError("adversarial_weight", f"is {adversarial_weight}", "Give a finite number from 0.")
        self.adversarial_weight, self.style_seed = adversarial_weight, style_seed

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.style_head = nn.Linear(features, classes)

    def random(self, step: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares (B, 1) of the own style, and partners (B,) for styles and for contents, at a training step."""
        random = np.random.default_rng(derive_seed(self.style_seed, step))
        share = torch.from_numpy(random.random((len(like), 1))).to(like)
        styles, contents = (torch.from_numpy(random.permutation(len(like))).to(like.device) for _ in range(2))
        return share, styles, contents

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        wide = full_precision(features)
        share, styles, contents = self.random(batch.step, wide)
        with torch.autocast(features.device.type, enabled=False):
            parts = content_and_style(wide)
            in_styles = randomise_style(*parts, styles, share).to(features.dtype)
            of_contents = randomise_content(*parts, contents).to(features.dtype)
        content = example_losses(model.head(in_styles), batch).mean()
        style = example_losses(self.style_head(of_contents.detach()), batch).mean()
        frozen = self.style_head.weight.detach(), self.style_head.bias.detach()
        guess = nn.functional.linear(of_contents, *frozen)
        adversary = -nn.functional.log_softmax(guess, 1).mean()
        total = content + style + self.adversarial_weight * adversary
        return Loss(total, {"content": content, "style": style, "adversary": adversary})
