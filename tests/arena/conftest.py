"""A small shift of arrays, and encoders that tell more or less of it."""

import pytest
import torch
from torch import nn

from unseen.arena import Candidate
from unseen.shifts.shift import Shift


class Columns(nn.Module):
    """The first `kept` of six columns, through a map that starts as the identity and can be tuned."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.layer = kept, nn.Linear(6, 6, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(6))

    def forward(self, x):
        return self.layer(x)[:, : self.kept]


@pytest.fixture
def toy():
    """toy(name, kept=6, **declared) -> Candidate."""

    def make(name, kept=6, **declared):
        return Candidate(name, Columns(kept), reads="array", keep_features=False, **declared)

    return make


@pytest.fixture
def toy_shift():
    """toy_shift(count, classes=3, domains=2): class means on the axes; later domains lie along the sixth."""

    def make(count=240, classes=3, domains=2, seed=0, name="toy"):
        generator = torch.Generator().manual_seed(seed)
        labels, domain = torch.arange(count) % classes, torch.arange(count) // classes % domains
        inputs = torch.randn(count, 6, generator=generator)
        inputs[torch.arange(count), labels] += 4
        inputs[:, 5] += 2.0 * domain
        classes, domains = [f"c{i}" for i in range(classes)], [f"d{i}" for i in range(domains)]
        return Shift(name, "array", inputs, labels, domain, tuple(classes), tuple(domains))

    return make
