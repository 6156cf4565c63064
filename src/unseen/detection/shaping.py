"""Activation shaping: features are clipped, pruned or scaled before the head, then any score reads the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from unseen.detection.bank_parts import require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


class Shaped(Detector):
    """`score`, the name or specification of a logit score that learns nothing, on the logits of shaped features.

    Subclasses define `shape(features)`, float32 (N, D) to (N, D). The methods are made for features that are not
    negative, those after a ReLU.
    """

    needs_logits = True

    def __init__(self, score: str = "energy"):
        super().__init__()
        self.logit_score = detectors.build(score)
        learns = type(self.logit_score).fit is not Detector.fit
        if learns or not self.logit_score.needs_logits or isinstance(self.logit_score, Shaped):
            raise InputError(
                "score", f"is {score!r}, not a score of the logits that learns nothing", "Give energy or msp."
            )

    def shape(self, features: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define shape(features) -> Tensor")

    def score(self, bank: Bank) -> Tensor:
        shaped = self.shape(require_finite(bank.features, "features").float())
        return self.logit_score.score(
            replace(bank, features=shaped, logits=linear(shaped, *require_head(bank)))
        )


def quantile(features: Tensor, share: float) -> Tensor:
    """One quantile of all activations (torch's own takes 16 million at most)."""
    value = np.quantile(features.detach().float().cpu().numpy(), share)
    return torch.tensor(value, dtype=torch.float32, device=features.device)


def kept_activations(features: Tensor, pruned: float) -> tuple[Tensor, Tensor]:
    """(N, k) the largest activations of each input and where they are; a share `pruned` is left out."""
    size = features.shape[1]
    return features.topk(max(1, size - round(size * pruned)), 1)


def sharpening(features: Tensor, kept: Tensor) -> Tensor:
    """(N, 1) exp of the sum of all activations over the sum of the kept ones.

    Negative activations count as zero, which no feature after a ReLU has: the ratio is then between 1 and
    D / k for any features, where the plain one may have any size and sign.
    """
    whole, part = (x.clamp(min=0).sum(1, keepdim=True) for x in (features, kept))
    return torch.exp(torch.where(part > 0, whole / part.clamp(min=1e-30), 1))


def require_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(name, f"is {value}", "Give a share from 0 to below 1, such as 0.9.")


@detectors.register(
    "react",
    summary="Energy after activations are clipped from above",
    paper="Sun et al. 2021, arXiv 2111.12797",
)
class ReAct(Shaped):
    """Clips at the quantile `clip` of all activations of the training features."""

    threshold: Tensor

    def __init__(self, clip: float = 0.9, score: str = "energy"):
        super().__init__(score)
        require_share("clip", clip)
        self.clip = clip

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        self.keep(bank, threshold=quantile(require_finite(bank.features, "features"), self.clip))
        return self

    def shape(self, features: Tensor) -> Tensor:
        self.require_fitted()
        return torch.minimum(features, self.threshold)


@detectors.register(
    "vra",
    summary="Energy after low activations are zeroed and high ones clipped",
    paper="Xu et al. 2023, arXiv 2302.11716",
)
class VariationalRectified(Shaped):
    """Zeroes activations below the quantile `low` of those of the training features, clips those above `high`.

    The two quantiles are over all features together. Their defaults are this library's, not the paper's.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, low: float = 0.1, high: float = 0.9, score: str = "energy"):
        super().__init__(score)
        require_share("low", low)
        require_share("high", high)
        if low > high:
            raise InputError("low", f"is {low}, above high={high}", "Give low <= high.")
        self.low, self.high = low, high

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features = require_finite(bank.features, "features")
        self.keep(bank, lowest=quantile(features, self.low), highest=quantile(features, self.high))
        return self

    def shape(self, features: Tensor) -> Tensor:
        self.require_fitted()
        return torch.where(features < self.lowest, 0, torch.minimum(features, self.highest))


@detectors.register(
    "ash",
    summary="Energy after all but the largest activations of an input are pruned",
    paper="Djurisic et al. 2023, arXiv 2209.09858",
)
class ActivationShaping(Shaped):
    """Zeroes the share `pruned` of each input's activations.

    variant  what happens to the others: "s" scales them by exp(sum before / sum after), "p" leaves them, "b"
             gives each an equal share of the sum before
    """

    def __init__(self, pruned: float = 0.65, variant: Literal["s", "p", "b"] = "s", score: str = "energy"):
        super().__init__(score)
        require_share("pruned", pruned)
        if variant not in ("s", "p", "b"):
            raise InputError("variant", f"is {variant!r}", "Give 's', 'p' or 'b'.")
        self.pruned, self.variant = pruned, variant

    def shape(self, features: Tensor) -> Tensor:
        kept, where = kept_activations(features, self.pruned)
        if self.variant == "s":
            kept = kept * sharpening(features, kept)
        elif self.variant == "b":
            kept = (features.sum(1, keepdim=True) / kept.shape[1]).expand(kept.shape)
        return torch.zeros_like(features).scatter(1, where, kept)


@detectors.register(
    "scale",
    summary="Energy after activations are scaled by how much of them the largest make up",
    paper="Xu et al. 2024, arXiv 2310.00227",
)
class Scale(Shaped):
    """Scales all activations by exp(their sum / sum without the share `pruned` of the smallest)."""

    def __init__(self, pruned: float = 0.85, score: str = "energy"):
        super().__init__(score)
        require_share("pruned", pruned)
        self.pruned = pruned

    def shape(self, features: Tensor) -> Tensor:
        return features * sharpening(features, kept_activations(features, self.pruned)[0])
