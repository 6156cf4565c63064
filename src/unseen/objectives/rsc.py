"""RSC: mute the features that the head leans on most, so that it learns to use the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


def threshold(values: Tensor, share: float) -> Tensor:
    """The value (..., 1) which the `share` of the last dimension with the largest `values` reaches.

    As a percentile that is interpolated (the authors' choice), it leaves ceil((1 - share) (n - 1)) below it.
    """
    below = math.ceil((1 - share) * (values.shape[-1] - 1) - 1e-9)
    return values.sort(dim=-1).values[..., below : below + 1]


def self_challenging_mask(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    head: nn.Linear,
    feature_share: float,
    batch_share: float,
) -> Tensor:
    """(B, F) 1.0 or 0.0: zero for features to mute, in examples to challenge.

    features (B, F), logits (B, C), targets (B, C). The gradient of the target's logit in the features is
    `targets @ head.weight` (equation 1, in closed form). The `feature_share` of features with the largest
    gradient is muted (equation 2), in the `batch_share` of examples whose probability of the target falls
    most by it (section 3.3).
    """
    gradients = targets @ head.weight.detach().to(targets.dtype)
    kept = (gradients < threshold(gradients, feature_share)).to(features.dtype)
    bias = None if head.bias is None else head.bias.detach().to(features.dtype)
    muted = nn.functional.linear(features.detach() * kept, head.weight.detach().to(features.dtype), bias)
    falls = ((logits.detach().softmax(1) - muted.softmax(1)) * targets).sum(1)
    spared = falls < threshold(falls, batch_share)
    return torch.where(spared.unsqueeze(1), torch.ones_like(kept), kept)


@objectives.register(
    "rsc",
    summary="Representation self-challenging: mute the features that predict best",
    paper="Huang et al. 2020, arXiv 2007.02454",
    search={"feature_share": ("uniform", 0.0, 0.5), "batch_share": ("uniform", 0.0, 0.5)},
)
class RSC(Objective):
    """Mean loss over all examples, with `self_challenging_mask` on the features; defaults are DomainBed's.

    feature_share, batch_share  in [0, 1]: shares of features to mute and of examples to mute them in
    """

    carries_weights = True

    def __init__(self, feature_share: float = 1 / 3, batch_share: float = 1 / 3):
        super().__init__()
        for name, value in (("feature_share", feature_share), ("batch_share", batch_share)):
            if not 0 <= value <= 1:
                raise InputError(name, f"is {value}", "Give a share from 0 to 1.")
        self.feature_share, self.batch_share = feature_share, batch_share

    def forward(self, model: Network, batch: Batch) -> Loss:
        head = model.head
        if not isinstance(head, nn.Linear):
            raise InputError(
                "head", f"is {type(head).__name__}, but RSC has closed forms", "Use a linear head."
            )
        features = model.featurizer(batch.x)
        wide = full_precision(features)
        with torch.autocast(features.device.type, enabled=False):
            logits = full_precision(head(features.to(head.weight.dtype)))
            targets = class_probabilities(batch.y, logits.shape[1], wide.dtype)
            mask = self_challenging_mask(wide, logits, targets, head, self.feature_share, self.batch_share)
        return Loss(example_losses(head(features * mask.to(features.dtype)), batch).mean())
