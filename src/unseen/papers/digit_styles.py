"""Styles of digit images by rule, and a small convolutional network to learn digits with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, conv2d, grid_sample

from unseen.networks import Network
from unseen.objectives.erm import ERM
from unseen.registry import Spec, updates
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.system import TrainingSystem


def noise(images: Tensor, seed: int, deviation: float = 0.35) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, 11))
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, seed: int, deviation: float = 1.6) -> Tensor:
    offsets = torch.arange(-5, 6).float()
    kernel = torch.exp(-offsets.square() / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    rows = conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, 5))
    return conv2d(rows, kernel.view(1, 1, -1, 1), padding=(5, 0))


def contrast(images: Tensor, seed: int, factor: float = 0.35, offset: float = 0.3) -> Tensor:
    return factor * images + offset


def rotation(images: Tensor, seed: int, degrees: float = 25) -> Tensor:
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix = torch.cat([turn, torch.zeros(2, 1)], 1).expand(len(images), 2, 3)
    return grid_sample(
        images, affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False
    )


def inversion(images: Tensor, seed: int) -> Tensor:
    return 1 - images


def gradient_background(images: Tensor, seed: int, brightest: float = 0.6) -> Tensor:
    """A ramp from black at the left to grey at the right behind the strokes."""
    ramp = torch.linspace(0, brightest, images.shape[-1])
    return torch.maximum(images, ramp.expand_as(images))


def occlusion(images: Tensor, seed: int, side: int = 10) -> Tensor:
    """A grey square at a random place."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 12))
    places = torch.randint(images.shape[-1] - side + 1, (len(images), 2, 1), generator=generator)
    inside = [(p <= i) & (i < p + side) for p in places.unbind(1) for i in [torch.arange(images.shape[-1])]]
    patch = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return torch.where(patch.unsqueeze(1), torch.full_like(images, 0.5), images)


Style = Callable[[Tensor, int], Tensor]
UNSEEN_STYLES: dict[str, Style] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "rotation": rotation,
    "inversion": inversion,
    "gradient": gradient_background,
}
"""Each a function of float images (N, 1, 28, 28) in [0, 1] and a seed."""

HELD_OUT_LEVELS: dict[str, Style] = {
    "turned left": partial(rotation, degrees=-40),
    "turned right": partial(rotation, degrees=40),
    "blurred": partial(blur, deviation=2.2),
    "pale": partial(contrast, factor=0.3, offset=0.35),
    "noisy": partial(noise, deviation=0.5),
    "lit from the right": partial(gradient_background, brightest=0.7),
}
"""Styles of `random_styles`, each at a level beyond what that draws (the last is none of its styles)."""


def random_styles(images: Tensor, seed: int) -> Tensor:
    """Images (N, 1, 28, 28), all in one style that `seed` draws with its level: as they are, turned by up to 30
    degrees, blurred by up to 1.8 pixels, with a contrast from 0.4, or with noise of up to 0.4."""
    generator = torch.Generator().manual_seed(seed)
    level = float(torch.rand((), generator=generator))
    styles = (
        lambda: images,
        lambda: rotation(images, seed, 60 * level - 30),
        lambda: blur(images, seed, 0.4 + 1.4 * level),
        lambda: contrast(images, seed, 0.4 + 0.6 * level, 0.3 * (1 - level)),
        lambda: noise(images, seed, 0.4 * level),
    )
    return styles[int(torch.randint(len(styles), (), generator=generator))]()


def strided_network(seed: int, classes: int = 10) -> Network:
    """Two convolutions of stride 2 (16 and 32 channels) and a layer of 64 units, for images (1, 28, 28)."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 1))
        featurizer = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(),
        )  # fmt: skip
        return Network(featurizer, 64, classes)


def train_network(
    network: Network,
    update: Spec,
    x: Tensor,
    y: Tensor,
    domain: Tensor,
    domains: int,
    *,
    seed: int,
    steps: int,
    batch: int,
) -> tuple[Network, float]:
    """The network after the last of `steps` updates with Adam (1e-3), and the seconds that they took.

    Batches have equally many examples of each domain, drawn with replacement.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    system = TrainingSystem(network.to(device), ERM())
    rule = updates.build(update).bind(system, torch.optim.Adam(system.parameters(), lr=1e-3))
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    members = [(domain == d).nonzero().squeeze(1) for d in range(domains)]
    began = time.perf_counter()
    for step in range(steps):
        drawn = [m[torch.randint(len(m), (batch // domains,), generator=generator)] for m in members]
        rows = torch.cat(drawn)
        rule.step(
            system, Batch(x=x[rows], y=y[rows], domain=domain[rows], domains=domains, step=step).to(device)
        )
    return network.cpu().eval(), time.perf_counter() - began


@torch.inference_mode()
def accuracy(network: Network, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(1) == y).double().mean())
