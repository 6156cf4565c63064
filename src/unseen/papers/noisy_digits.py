"""Small perceptrons on digits whose labels are partly wrong: many runs at once, with robust gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.shifts.sampling import derive_seed
from unseen.updates.group_gradients import GroupGradients

PIXELS, CLASSES = 64, 10


@dataclass(frozen=True)
class Protocol:
    """Sizes of one run."""

    train: int = 600
    validation: int = 197
    width: int = 128
    batch: int = 30
    epochs: int = 80
    momentum: float = 0.9


@dataclass(frozen=True)
class NoisyDigits:
    """Digits in three parts; labels are replaced by uniform ones with a probability that is asked for.

    x, y   images (N, 64) in [0, 1] and true labels (N,): training, then validation, then test examples
    draws  (N,) in [0, 1): a label is replaced where this is below the noise, so noises are nested
    other  (N,) the labels that replace
    """

    x: Tensor
    y: Tensor
    draws: Tensor
    other: Tensor
    protocol: Protocol

    @classmethod
    def draw(cls, seed: int, protocol: Protocol = Protocol()) -> NoisyDigits:
        """The 1,797 digits of scikit-learn in random order."""
        from sklearn.datasets import load_digits

        found = load_digits()
        generator = torch.Generator().manual_seed(derive_seed(seed, 42))
        order = torch.randperm(len(found.target), generator=generator)
        return cls(
            x=torch.from_numpy(found.data / 16).float()[order],
            y=torch.from_numpy(found.target).long()[order],
            draws=torch.rand(len(order), generator=generator),
            other=torch.randint(CLASSES, (len(order),), generator=generator),
            protocol=protocol,
        )

    @property
    def parts(self) -> dict[str, slice]:
        middle = self.protocol.train + self.protocol.validation
        return {
            "train": slice(self.protocol.train),
            "validation": slice(self.protocol.train, middle),
            "test": slice(middle, None),
        }

    def labels(self, noise: float) -> Tensor:
        """(N,) true labels of test examples, noisy ones of the others."""
        noisy = torch.where(self.draws < noise, self.other, self.y)
        noisy[self.parts["test"]] = self.y[self.parts["test"]]
        return noisy


@dataclass(frozen=True)
class Settings:
    """One run of a stack."""

    noise: float
    rate: float = 0.05
    decay: float = 0.0
    smoothing: float = 0.0


class Perceptrons:
    """R two-layer ReLU networks as one matrix of parameters (R, P), with gradients in closed form."""

    def __init__(self, runs: int, width: int, seed: int):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, 43))
            start = self.module(width)
        self.width = width
        self.shapes = [parameter.shape for parameter in start.parameters()]
        self.theta = nn.utils.parameters_to_vector(start.parameters()).detach().repeat(runs, 1)

    @staticmethod
    def module(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def run(self, index: int) -> nn.Sequential:
        """One of the networks as a module."""
        module = self.module(self.width)
        nn.utils.vector_to_parameters(self.theta[index], module.parameters())
        return module

    def _layers(self) -> list[Tensor]:
        parts = self.theta.split([shape.numel() for shape in self.shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def hidden_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, B, width) and (R, B, C) of images (B, 64)."""
        first, bias, second, last = self._layers()
        hidden = torch.relu(x @ first.mT + bias.unsqueeze(1))
        return hidden, hidden @ second.mT + last.unsqueeze(1)

    def predictions(self, x: Tensor) -> Tensor:
        """(R, B)"""
        return self.hidden_and_logits(x)[1].argmax(-1)

    def gradients(self, x: Tensor, targets: Tensor, groups: int) -> Tensor:
        """(groups, R, P) gradients of the mean cross-entropy of each of `groups` equal parts of a batch.

        x (B, 64), targets (R, B, C) probabilities.
        """
        hidden, logits = self.hidden_and_logits(x)
        residual = (logits.softmax(-1) - targets) * (groups / len(x))
        back = (residual @ self._layers()[2]) * (hidden > 0)
        pixels = x.expand(len(back), -1, -1)

        def grouped(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, R, B / groups, ...)

        back, residual, hidden, pixels = (grouped(v) for v in (back, residual, hidden, pixels))
        parts = (back.mT @ pixels, back.sum(2), residual.mT @ hidden, residual.sum(2))
        return torch.cat([part.flatten(2) for part in parts], 2)


Observer = Callable[[int, Perceptrons], None]


def train(
    data: NoisyDigits,
    stack: list[Settings],
    seed: int,
    observe: Observer,
    *,
    rule: GroupGradients | None = None,
    longest: Tensor | None = None,
) -> Tensor:
    """SGD with momentum on all runs of a stack, which share initial weights and order of examples.

    observe  called as observe(step, networks) before the first step and after each
    rule     its robust mean replaces the mean of gradients; None for the mean
    longest  (steps, R) norms to which gradients are cut, or None
    Returns (steps, R) the norms of what was followed.
    """
    protocol, x = data.protocol, data.x
    networks = Perceptrons(len(stack), protocol.width, seed)
    smoothing = torch.tensor([s.smoothing for s in stack]).view(-1, 1, 1)
    labels = torch.stack([data.labels(s.noise) for s in stack])
    targets = nn.functional.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    rate, decay = (torch.tensor([getattr(s, n) for s in stack]).unsqueeze(1) for n in ("rate", "decay"))
    velocity = torch.zeros_like(networks.theta)
    norms: list[Tensor] = []
    generator = torch.Generator().manual_seed(derive_seed(seed, 44))
    observe(0, networks)
    for _ in range(protocol.epochs):
        for rows in torch.randperm(protocol.train, generator=generator).split(protocol.batch):
            count = 1 if rule is None else min(rule.groups or len(rows), len(rows))
            each = networks.gradients(x[rows], targets[:, rows], count)
            followed = each[0] if rule is None else rule.robust_mean(iter(each), count)
            size = followed.norm(dim=1)
            if longest is not None:
                followed = followed * (longest[len(norms)] / size).clamp(max=1).unsqueeze(1)
            norms.append(size)
            velocity.mul_(protocol.momentum).add_(followed + decay * networks.theta)
            networks.theta -= rate * velocity
            observe(len(norms), networks)
    return torch.stack(norms)


class Accuracies:
    """An observer: accuracy of all runs on every part, once an epoch."""

    def __init__(self, data: NoisyDigits, stack: list[Settings]):
        self.data, self.labels = data, torch.stack([data.labels(s.noise) for s in stack])
        self.steps = data.protocol.train // data.protocol.batch
        self.correct: list[Tensor] = []

    def __call__(self, step: int, networks: Perceptrons) -> None:
        if step % self.steps == 0:
            self.correct.append(networks.predictions(self.data.x) == self.labels)

    def of(self, part: str, run: int) -> Tensor:
        """(epochs + 1,) accuracy, on noisy labels except for the test part."""
        return torch.stack([c[run, self.data.parts[part]].float().mean() for c in self.correct])

    def on_wrong_labels(self, run: int, epoch: int = -1) -> float:
        """Share of the wrong training labels that an epoch's network gives; NaN without any."""
        part = self.data.parts["train"]
        wrong = self.labels[run, part] != self.data.y[part]
        return float(self.correct[epoch][run, part][wrong].float().mean())
