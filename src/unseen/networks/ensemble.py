"""Several classifiers as one network: the mean of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.combining import mean_probabilities
from unseen.shifts.batch import Inputs

Mean = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """`forward` gives (B, C) ln of the members' mean probabilities, or their mean logits.

    The mean of probabilities is the Bayesian mixture of the members, and its softmax the mixture itself. The mean of
    logits is a product of experts: where members differ in how sure they are, the surer ones decide.
    """

    def __init__(self, models: Sequence[nn.Module], mean: Mean = "probabilities"):
        super().__init__()
        self.models, self.mean = nn.ModuleList(models), mean

    def forward(self, x: Inputs) -> Tensor:
        logits = torch.stack([model(x) for model in self.models])
        if self.mean == "logits":
            return logits.mean(0)
        return mean_probabilities(logits).clamp_min(1e-30).log()


def ensemble(models: Sequence[nn.Module], mean: Mean = "probabilities") -> Ensemble:
    """Classifiers whose `forward` gives logits (B, C) of the same classes, as one; `mean` says of what."""
    if not models:
        raise InputError("models", "are none", "Give one at least.")
    if mean not in ("probabilities", "logits"):
        raise InputError(f"mean {mean!r}", "is not known", "Use probabilities or logits.")
    return Ensemble(models, mean)
