"""Digits of which half are known: labelled examples of these, a pool of all, an encoder that was never told any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.networks.simple import cnn
from unseen.objectives.supcon import supcon_loss
from unseen.shifts.batch import Inputs
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

TURN, SCALE, MOVE = math.radians(15), 0.15, 1 / 8
"""Views are turned, scaled and moved by up to so much: half a circle is pi, a side is 2."""


def affine_views(x: Inputs, generator: torch.Generator) -> Tensor:
    """Images (B, 1, H, W) to two affine views of each, (B, 2, 1, H, W); no mirror images, which digits have not."""
    assert isinstance(x, Tensor)
    twice = x.repeat_interleave(2, 0)
    turn, scale, right, down = 2 * torch.rand(4, len(twice), generator=generator) - 1
    cos, sin = (f(TURN * turn) / (1 + SCALE * scale) for f in (torch.cos, torch.sin))
    rows = [torch.stack([cos, -sin, 2 * MOVE * right], 1), torch.stack([sin, cos, 2 * MOVE * down], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(twice.shape), align_corners=False)
    return nn.functional.grid_sample(twice, grid, align_corners=False).unflatten(0, (-1, 2))


@dataclass(frozen=True)
class Protocol:
    """Epochs of SimCLR and of discovery, both of batches of 128, and the peak rate of discovery."""

    pretraining: int = 40
    epochs: int = 30
    learning_rate: float = 0.01
    examples: int = 1797


@dataclass(frozen=True)
class World:
    """Images (N, 1, 8, 8) in [0, 1] and classes: old ones 0 to n_old - 1, then new ones, `labelled` (N,) bool only
    of old ones; images of digits that are neither, `outliers`."""

    x: Tensor
    y: Tensor
    labelled: Tensor
    outliers: Tensor
    n_old: int
    n_new: int

    @property
    def known(self) -> tuple[Tensor, Tensor]:
        return self.x[self.labelled], self.y[self.labelled]

    @property
    def pool(self) -> Tensor:
        return self.x[~self.labelled]

    @property
    def hidden(self) -> Tensor:
        """Classes of the pool, which only the judge sees."""
        return self.y[~self.labelled]


def discovered_digits(seed: int, protocol: Protocol, *, n_old: int = 5, n_new: int = 5) -> World:
    """scikit-learn's digits in a random order of classes; half of the examples of old ones have labels."""
    from sklearn.datasets import load_digits

    small = load_digits()
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    place = torch.randperm(10, generator=generator).argsort()[torch.from_numpy(small.target).long()]
    order = torch.randperm(len(place), generator=generator)[: protocol.examples]
    images, place = torch.from_numpy(small.images / 16.0).float()[order].unsqueeze(1), place[order]
    inside = place < n_old + n_new
    x, y = images[inside], place[inside]
    labelled = (y < n_old) & (torch.rand(len(y), generator=generator) < 0.5)
    return World(x, y, labelled, images[~inside], n_old, n_new)


def pretrained(x: Tensor, protocol: Protocol, seed: int) -> nn.Module:
    """A small CNN and a linear layer, images to 64 features, after SimCLR without labels: the stand-in for DINO.

    Adam at 1e-3 with a cosine, temperature 0.2, views by `affine_views`.
    """
    with seeded(seed, 2):
        convolutions = cnn(input_shape=(1, 8, 8), classes=2).featurizer
        encoder = nn.Sequential(convolutions, nn.Linear(64, 64))  # pooled activations alone have one sign
        projector = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    steps = protocol.pretraining * len(x) // 128
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    for _ in range(steps):
        views = affine_views(x[torch.randint(len(x), (128,), generator=generator)], generator)
        z = nn.functional.normalize(projector(encoder(views.flatten(0, 1))), dim=1)
        loss = supcon_loss(z.unflatten(0, (-1, 2)), None, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder.eval()
