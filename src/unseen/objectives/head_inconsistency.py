"""How differently a head's loss is shaped around its weights for known and for perturbed examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.objectives.head_statistics import full_precision, head_statistics
from unseen.objectives.targets import class_probabilities


@dataclass(frozen=True)
class Inconsistency:
    """The two parts of UDIM's inconsistency, scalars: the first is of the order gradient^4, the second ^2."""

    variance: Tensor
    norm: Tensor


def per_example_head_gradients(features: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """(B, C, F + 1) gradients of each example's cross-entropy in a linear head, the bias in the last column.

    features (B, F), logits (B, C), targets (B,) labels or (B, C) soft ones. In closed form (p - y) [z, 1]'. Means
    and variances over examples need no such tensor: `head_statistics` has them.
    """
    residual = logits.softmax(-1) - class_probabilities(targets, logits.shape[1], logits.dtype)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    return residual.unsqueeze(2) * inputs.unsqueeze(1)


def gradient_variance_distance(source: Tensor, unknown: Tensor) -> Tensor:
    """1/2 mean (v_s - v)^2 + 1/2 mean (v_u - v)^2 with v = (v_s + v_u) / 2, over the last two dimensions."""
    return (source - unknown).square().mean((-2, -1)) / 4


def head_inconsistency(
    known: tuple[Tensor, Tensor],
    perturbed: tuple[Tensor, Tensor],
    targets: Tensor,
    domain: Tensor,
    domains: int,
    *,
    weight: Tensor | None = None,
    bias: bool = True,
) -> Inconsistency:
    """Inconsistency of the gradients in a linear head, summed over domains (Shin et al. 2024, section 3.3).

    known      features (B, F) and logits (B, C) of the examples
    perturbed  the same of the perturbed ones
    domain     (B,) int64 in [0, domains): each is compared with its own perturbed examples
    bias       whether the head has one

    variance  `gradient_variance_distance` of the variances over examples, per coordinate of the head. Both are
              around the mean gradient of the *known* examples: around its own mean, the variance of the perturbed
              ones would miss that their mean gradient is another
    norm      sum over the head's tensors of the mean squared gradient of the perturbed examples per coordinate
    """
    of_known, of_perturbed = (
        head_statistics(
            full_precision(features),
            logits,
            targets,
            domain,
            domains,
            order=("gradient", "gradient_variance"),
            weight=weight,
            pooled=False,
        ).values
        for features, logits in (known, perturbed)
    )
    mean, other = of_known["gradient"], of_perturbed["gradient"]
    source = of_known["gradient_variance"]
    unknown = of_perturbed["gradient_variance"] + (other - mean).square()
    second = of_perturbed["gradient_variance"] + other.square()  # mean of squares
    norm = second[..., :-1].mean((-2, -1)).sum()
    if bias:
        norm = norm + second[..., -1].mean(-1).sum()
    else:
        source, unknown = source[..., :-1], unknown[..., :-1]
    return Inconsistency(gradient_variance_distance(source, unknown).sum(), norm)
