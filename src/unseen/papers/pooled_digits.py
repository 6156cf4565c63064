"""MNIST digits reduced to 8 x 8 with what they are never trained on, and a small network with batch normalisation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

from unseen.papers.digit_styles import contrast, noise, rotation
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.sampling import derive_seed

ID = "digits"
OTHERS = ("noise", "other source", "turned", "pale")
Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PooledDigits:
    """Training images in nine places (9, N, 1, 8, 8), their labels, and examples to choose and to judge by."""

    x: Tensor
    y: Tensor
    validation: Examples
    tests: dict[str, Examples]

    @classmethod
    def draw(cls, seed: int, train: int = 3500, validation: int = 500, test: int = 1000) -> PooledDigits:
        images, digits = mnist()
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
        order = order[: train + validation + test]
        x = avg_pool2d(images[order, None, 2:26, 2:26].float() / 255, 3)
        y = digits[order]
        sizes = [train, validation, test]
        fit, choose, judge = zip(x.split(sizes), y.split(sizes), strict=True)
        held, labels = judge
        tests = {
            ID: judge,
            "noise": (noise(held, seed, 0.25), labels),
            "other source": _optdigits(),
            "turned": (rotation(held, seed, 25), labels),
            "pale": (contrast(held, seed, 0.4, 0.0), labels),
        }
        wide = pad(fit[0], (1, 1, 1, 1))
        places = [wide[..., i : i + 8, j : j + 8] for i, j in itertools.product(range(3), range(3))]
        return cls(torch.stack(places), fit[1], choose, tests)

    def batches(self, seed: int, size: int) -> Iterator[Examples]:
        """An epoch in random order, each image moved by up to one pixel a side; the last, smaller batch left out."""
        generator = torch.Generator().manual_seed(seed)
        place = torch.randint(len(self.x), self.y.shape, generator=generator)
        order = torch.randperm(len(self.y), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            yield self.x[place[rows], rows], self.y[rows]

    def recalibration(self) -> list[Tensor]:
        """A fifth of the training images as they are, for batch statistics."""
        return list(self.x[4, : len(self.y) // 5].split(250))


@lru_cache(maxsize=1)
def _optdigits() -> Examples:
    """The 1,797 digits of scikit-learn, made by other people and another scanner."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target).long()


def network(seed: int) -> nn.Sequential:
    """Three convolutions of 32, 64 and 64 channels with batch normalisation, 58,144 weights with the head."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 2))
        for inner, outer, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [
                nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
        layers += [nn.Flatten(), nn.Linear(256, 10)]
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(
    model: nn.Module, data: PooledDigits, *, seed: int, epochs: int, warmup: float = 0.1,
    rate: float = 0.1, decay: float = 5e-4, size: int = 128,
) -> nn.Module:  # fmt: skip
    """SGD with Nesterov momentum; the rate rises in the first `warmup` of the steps, then falls linearly to 0."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    steps, step = epochs * (len(data.y) // size), 0
    for epoch in range(epochs):
        for x, y in data.batches(derive_seed(seed, epoch), size):
            share = (step + 1) / steps
            optimizer.param_groups[0]["lr"] = rate * min(
                share / warmup if warmup else 1, (1 - share) / (1 - warmup)
            )
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
    return model


@torch.inference_mode()
def accuracy(model: nn.Module, examples: Examples) -> float:
    model.eval()
    return float((model(examples[0]).argmax(1) == examples[1]).double().mean())
