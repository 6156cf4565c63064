"""Outputs that every detector can be fitted on: non-negative features, one cluster a class, and a linear head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unseen.networks import Bank

FEATURES, CLASSES = 12, 4


def linear_head() -> nn.Linear:
    """Linear discriminants of the clusters: about 97 % of the examples are classified correctly."""
    means = _means()
    head = nn.utils.skip_init(nn.Linear, FEATURES, CLASSES, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(means - means.mean(0))
        head.bias.copy_(-means.square().sum(1) / 2 + means.square().sum(1).mean() / 2)
    return head


def _means() -> torch.Tensor:
    return 1.5 + 1.1 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(7))


def make_outputs(count: int = 240, seed: int = 0, far: float = 0.0) -> Bank:
    """Outputs of `count` inputs; `far` is the distance of their clusters from those of the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    features = _means()[labels] + 1.6 * torch.randn(count, FEATURES, generator=generator)
    if far:
        direction = torch.randn(FEATURES, generator=generator)
        features = _means().mean(0) + 0.5 * (features - _means().mean(0)) + far * direction / direction.norm()
    features, head = features.relu(), linear_head()
    return Bank(features, head(features).detach(), labels, head=head)


@pytest.fixture
def train() -> Bank:
    return make_outputs(seed=0)


@pytest.fixture
def familiar() -> Bank:
    return make_outputs(seed=1)


@pytest.fixture
def far() -> Bank:
    return make_outputs(seed=2, far=8.0)
