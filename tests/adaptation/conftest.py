"""A small world of images whose camera changes, and a network with batch normalisation that learnt it in one light."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.shifts.preprocessing import ArrayPreprocessing, Preprocessing
from unseen.shifts.shift import Shift

CLASSES, SIDE = 10, 8


def images(count: int, seed: int, noise: float = 2.0) -> tuple[Tensor, Tensor]:
    """Class patterns of 4 x 4 coloured fields (count, 3, 8, 8) in noise, and their labels."""
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = patterns[labels].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return x + noise * torch.randn(count, 3, SIDE, SIDE, generator=generator), labels


def other_light(x: Tensor, strength: float = 0.7) -> Tensor:
    """Another gain and offset for each colour: what batch statistics can undo."""
    gain = 1 + strength * torch.tensor([1.0, -0.6, 0.5]).view(3, 1, 1)
    return x * gain + strength * torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1)


def layer_of(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(2, width) if kind == "group" else nn.LayerNorm([width, SIDE, SIDE])


def make_network(kind: str = "batch", width: int = 8, classes: int = CLASSES) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(
            nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1),
                layer_of(kind, width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
            ),
            4 * width,
            classes,
        )


@pytest.fixture
def small_network():
    """Makes an untrained network: kind of normalisation, width, classes."""
    return make_network


@dataclass
class World:
    """A trained network, its preprocessing, and a shift with the domains "known" and "other"."""

    network: Network
    preprocessing: Preprocessing
    shift: Shift

    def inputs(self, count: int = 64, seed: int = 5) -> Tensor:
        """Network inputs in the other light."""
        x, _ = images(count, seed)
        return self.preprocessing.finish(self.preprocessing.encode(other_light(x)))


@pytest.fixture(scope="session")
def world() -> World:
    x, y = images(1600, 0)
    seen, labels = images(1200, 1)
    shift = Shift(
        name="light",
        kind="array",
        inputs=torch.cat([x[:600], other_light(seen)]),
        labels=torch.cat([y[:600], labels]),
        domain=torch.cat([torch.zeros(600), torch.ones(1200)]).long(),
        classes=tuple(map(str, range(CLASSES))),
        domains=("known", "other"),
    )
    preprocessing = ArrayPreprocessing.fit(shift, torch.arange(600))
    network = make_network(width=24)
    x = preprocessing.finish(preprocessing.encode(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = torch.randint(len(y), (64,), generator=generator)
        loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return World(network.eval(), preprocessing, shift)
