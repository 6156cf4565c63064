"""Several classifiers as one network: the mixture of their predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.combining import mean_probabilities
from unseen.shifts.batch import Inputs


class Ensemble(nn.Module):
    """`forward` gives (B, C) ln of the members' mean probabilities: its softmax is the mixture itself.

    Probabilities are averaged, never logits or weights: only then is it the Bayesian mixture of its members.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Inputs) -> Tensor:
        return mean_probabilities(torch.stack([model(x) for model in self.models])).clamp_min(1e-30).log()


def ensemble(models: Sequence[nn.Module]) -> Ensemble:
    """The mixture of classifiers whose `forward` gives logits (B, C) of the same classes."""
    if not models:
        raise InputError("models", "are none", "Give one at least.")
    return Ensemble(models)
