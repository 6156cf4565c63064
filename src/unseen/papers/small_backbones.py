"""Small image encoders pretrained on the machine: two architectures, five objectives, two sizes of data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss, normalize, one_hot

from unseen.networks import build_network
from unseen.papers.tiny_world import COLOURS, DOMAINS, SHAPES, SIDE, render
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

FEATURES = 64
KNOWN = ("photo", "tint", "noise")
"""Looks of TinyWorld that pretraining sees; sketch, negative, blur, dark and stripe stay for the tests."""
PRETRAINED_DIGITS = 3000
"""The first so many MNIST digits, in a fixed random order, are for pretraining, the others for the tasks."""


@dataclass(frozen=True)
class Recipe:
    """What makes a small backbone. objective "none" leaves the initial weights."""

    architecture: str
    objective: str
    images: int


@dataclass(frozen=True)
class Pretraining:
    """Images (N, 3, 16, 16), classes (N,) of 74, and words of captions (N, 35) of 0 and 1."""

    images: Tensor
    labels: Tensor
    words: Tensor


def digits_at_hand() -> tuple[Tensor, Tensor]:
    """MNIST as (5000, 3, 16, 16) in [0, 1] in a fixed random order, and its labels."""
    images, labels = mnist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return at_side(images[order]), labels[order]


def at_side(images: Tensor) -> Tensor:
    """Grey uint8 images (N, h, w) as three equal channels of 16 x 16 in [0, 1]."""
    grey = interpolate(images[:, None].float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
    return grey.repeat(1, 3, 1, 1)


def pretraining_data(count: int, seed: int) -> Pretraining:
    """`count` images: half TinyWorld in the looks of KNOWN, half MNIST."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 11))
    half = count // 2
    shape = torch.randint(len(SHAPES), (half,), generator=generator)
    colour = torch.randint(len(COLOURS), (half,), generator=generator)
    look = torch.tensor([DOMAINS.index(name) for name in KNOWN])[torch.arange(half) % len(KNOWN)]
    digits, labels = digits_at_hand()
    drawn = torch.randperm(PRETRAINED_DIGITS, generator=generator)[:half]
    named = torch.cat([one_hot(shape, 8), one_hot(colour, 8), one_hot(look, 8), torch.zeros(half, 10)], 1)
    numbered = torch.cat([torch.zeros(len(drawn), 24), one_hot(labels[drawn], 10)], 1)
    words = torch.cat([named, numbered])
    return Pretraining(
        torch.cat([render(shape, colour, look, generator), digits[drawn]]),
        torch.cat([8 * shape + colour, 64 + labels[drawn]]),
        torch.cat([words, torch.ones(len(words), 1)], 1),  # "a photo of a"
    )


def centred(images: Tensor) -> Tensor:
    """What every encoder here takes: pixel values of [0, 1] around 0."""
    return (images - 0.3) / 0.3


def encoder(architecture: str, seed: int) -> nn.Module:
    """(B, 3, 16, 16) to (B, 64): "cnn", three convolutions (about 78 k parameters); "vit", three blocks (150 k)."""
    with seeded(seed):
        if architecture == "vit":
            return build_network(f"transformer(width={FEATURES}, depth=3)", (3, SIDE, SIDE), 1).featurizer
        layers: list[nn.Module] = []
        for inner, outer in ((3, 24), (24, 48), (48, 96)):
            layers += [
                nn.Conv2d(inner, outer, 3, padding=1),
                nn.GroupNorm(4, outer),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 96, FEATURES))


def pretrain(recipe: Recipe, seed: int, *, steps: int = 300, batch: int = 128) -> nn.Module:
    """An encoder after `steps` steps of Adam at 1e-3 on its objective; the data decide the number of epochs.

    Backbones of one architecture start from the same weights of a seed.
    """
    network = encoder(recipe.architecture, derive_seed(seed, 12))
    if recipe.objective == "none":
        return network.eval()
    data = pretraining_data(recipe.images, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, 13))
    with seeded(derive_seed(seed, 14)):
        objective = _OBJECTIVES[recipe.objective]()
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.images), (batch,), generator=generator)
        loss = objective(network, data, rows, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


class Supervised(nn.Module):
    """Cross-entropy of 64 shape and colour classes and 10 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, 74)

    def forward(
        self, network: nn.Module, data: Pretraining, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        return cross_entropy(self.head(network(centred(data.images[rows]))), data.labels[rows])


class Contrastive(nn.Module):
    """Two views of an image find each other among all others (Chen et al. 2020, SimCLR), temperature 0.2."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(
        self, network: nn.Module, data: Pretraining, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        views = torch.cat([view(data.images[rows], generator) for _ in range(2)])
        return info_nce(self.head(network(centred(views))))


class Masked(nn.Module):
    """Half of the 4 x 4 patches are blanked; the whole image is drawn again from the pooled feature."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 3 * SIDE * SIDE))

    def forward(
        self, network: nn.Module, data: Pretraining, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        images = centred(data.images[rows])
        kept = torch.rand(len(rows), 1, 4, 4, generator=generator) < 0.5
        drawn = self.decoder(network(images * interpolate(kept.float(), (SIDE, SIDE))))
        return mse_loss(drawn, images.flatten(1))


class Rotation(nn.Module):
    """By how many quarter turns was the image turned? (Gidaris et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, 4)

    def forward(
        self, network: nn.Module, data: Pretraining, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        turns = torch.randint(4, (len(rows),), generator=generator)
        images = data.images[rows]
        turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])[turns, torch.arange(len(rows))]
        return cross_entropy(self.head(network(centred(turned))), turns)


class Caption(nn.Module):
    """Images and the words of their captions find each other (Radford et al. 2021); equal captions are positives."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(35, 64, bias=False), nn.ReLU(), nn.Linear(64, FEATURES))

    def forward(
        self, network: nn.Module, data: Pretraining, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        words = data.words[rows].clone()
        silent = torch.rand(len(rows), generator=generator) < 0.5
        words[silent, 16:24] = 0  # half of the captions do not name the look
        image = normalize(network(centred(data.images[rows])), dim=-1)
        text = normalize(self.text(words / words.sum(1, keepdim=True)), dim=-1)
        same = (words[:, None] == words).all(2).float()
        target = same / same.sum(1, keepdim=True)
        logits = 10 * image @ text.T
        return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


_OBJECTIVES: dict[str, type[nn.Module]] = {
    "supervised": Supervised,
    "contrastive": Contrastive,
    "masked": Masked,
    "rotation": Rotation,
    "caption": Caption,
}


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by up to two pixels, with other strength, colour balance and noise; in [0, 1]."""
    count = len(images)
    moves = torch.randint(-2, 3, (count, 2), generator=generator)
    axis = torch.arange(SIDE)
    y = (axis - moves[:, :1]).clamp(0, SIDE - 1)[:, None, :, None].expand(-1, 3, -1, SIDE)
    x = (axis - moves[:, 1:]).clamp(0, SIDE - 1)[:, None, None, :].expand(-1, 3, SIDE, -1)
    moved = images.gather(2, y).gather(3, x)
    strength = 0.6 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    balance = 0.8 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return (moved * strength * balance + noise).clamp(0, 1)


def info_nce(projected: Tensor, temperature: float = 0.2) -> Tensor:
    """Normalised temperature-scaled cross-entropy of 2 B projections whose rows i and B + i are a pair."""
    z = normalize(projected, dim=-1)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))
