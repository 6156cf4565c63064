"""Maximum concept matching: how near an image is to the nearest of the class names, relative to the others."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.detection.bank_parts import require_head
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors


def concept_matching(cosines: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) largest softmax probability of cosines (N, C) over the temperature: Ming et al. 2022, equation 1.

    At temperature 1, which the paper takes, the softmax is far from saturated; 1 / logit scale is CLIP's own.
    """
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number such as 1.")
    return torch.softmax(cosines.float() / temperature, -1).amax(-1)


@detectors.register(
    "mcm",
    summary="Largest softmax probability of the cosines to the rows of the head (concepts)",
    paper="Ming et al. 2022, arXiv 2211.13445",
)
class ConceptMatching(Detector):
    """For heads made of text features: cosines of features and rows of the head, whatever bias and scale are."""

    needs_logits = True

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number such as 1.")
        self.temperature = temperature

    def score(self, bank: Bank) -> Tensor:
        weight = torch.nn.functional.normalize(require_head(bank)[0], dim=-1)
        features = torch.nn.functional.normalize(require_finite(bank.features, "features").float(), dim=-1)
        return concept_matching(features @ weight.T, self.temperature)
