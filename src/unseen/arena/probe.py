"""Linear heads on frozen features, and whole encoders fine-tuned: every learning rate tried at equal budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unseen.arena.backbones import Candidate
from unseen.networks.parameter_groups import grouped
from unseen.shifts.shift import take
from unseen.training.system import seeded

SMALLEST_SPREAD = 1e-4
"""Of a feature's variance against the mean variance: features that hardly fire in training are not blown up."""


@dataclass(frozen=True)
class Standardise:
    """Batch normalisation without scale and shift, by statistics of the training rows (He et al. 2022, MAE)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Standardise:
        variance, mean = torch.var_mean(features.double(), dim=0, correction=0)
        return cls.of(mean, variance)

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor) -> Standardise:
        floor = SMALLEST_SPREAD * variance.mean()
        spread = (variance + floor).sqrt()
        return cls(mean.float(), torch.where(spread > 0, spread, 1.0).float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean.to(features.device)) / self.deviation.to(features.device)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches of rows (at most `size`,), epoch after epoch in new orders."""
    rows = torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < min(size, count):
            rows = torch.randperm(count, generator=generator)
        yield rows[:size]
        rows = rows[size:]


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate, from 1 down towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def train_heads(
    features: Tensor,
    labels: Tensor,
    classes: int,
    rates: Tensor,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Weights (T, D, K) and biases (T, 1, K) of T linear classifiers that differ in their learning rate.

    features  (N, D), standardised;  labels (N,) in [0, K);  rates (T,)
    SGD with momentum 0.9 and cosine decay, without weight decay, from zero; all see the same batches. The gradient
    of the mean cross-entropy is X^T (softmax - onehot) / B, for all T in one product.
    """
    targets = nn.functional.one_hot(labels, classes).float()
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1)  # the last column learns the bias
    weight = torch.zeros(len(rates), inputs.shape[1], classes)
    velocity = torch.zeros_like(weight)
    for step, rows in enumerate(batches(len(features), batch, steps, generator)):
        error = (inputs[rows] @ weight).softmax(-1) - targets[rows]
        velocity.mul_(0.9).add_(inputs[rows].T @ error / len(rows))
        weight.sub_(rates.view(-1, 1, 1) * cosine(step, steps) * velocity)
    return weight[:, :-1], weight[:, -1:]


def best_trial(logits: Tensor, labels: Tensor) -> int:
    """The trial of (T, N, K) logits with the greatest accuracy, and among equals the least cross-entropy.

    A trial that diverged, with NaN or infinite logits, loses to all others.
    """
    ranks = []
    for trial in logits:
        finite = bool(torch.isfinite(trial).all())
        right = float((trial.argmax(1) == labels).double().mean()) if finite else -1.0
        ranks.append((right, -float(cross_entropy(trial, labels)) if finite else -math.inf))
    return max(range(len(ranks)), key=lambda index: ranks[index])


class Tuned(nn.Module):
    """A fine-tuned copy of an encoder with a linear head on its standardised features."""

    def __init__(self, candidate: Candidate, width: int, classes: int, standardise: Standardise):
        super().__init__()
        self.encoder = copy.deepcopy(candidate.encoder).requires_grad_(True)
        self.head = nn.Linear(width, classes)
        self.candidate, self.standardise = candidate, standardise

    def forward(self, raw: Any) -> Tensor:
        return self.head(self.standardise(self.candidate.encode(raw, self.encoder)))

    @torch.inference_mode()
    def logits(self, inputs: Any, rows: Tensor, batch: int = 128) -> Tensor:
        """Logits (N, K) of the given rows, on the CPU."""
        return torch.cat([self(take(inputs, part)).float().cpu() for part in rows.split(batch)])


def fine_tune(
    candidate: Candidate,
    inputs: Any,
    rows: Tensor,
    labels: Tensor,
    classes: int,
    rate: float,
    *,
    steps: int,
    batch: int,
    layer_decay: float,
    seed: int,
) -> Tuned:
    """A copy of the candidate's encoder and a new head, trained on `rows` of raw inputs with their labels (N,).

    AdamW, weight decay 0.05, cosine decay, label smoothing 0.1; the learning rate of the b-th block from the head
    is rate x layer_decay^b. The paper's warm-up, drop path, Mixup and augmentations are left out: they belong to its
    100 epochs.
    """
    standardise = Standardise.fit(candidate.features(inputs)[rows])
    with seeded(seed):
        tuned = Tuned(candidate, len(standardise.mean), classes, standardise)
    device = next(iter(tuned.encoder.parameters()), torch.zeros(0)).device
    tuned.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        layer_groups(tuned.encoder, tuned.head, rate, layer_decay), weight_decay=0.05
    )
    initial = [group["lr"] for group in optimizer.param_groups]
    for step, chosen in enumerate(batches(len(rows), batch, steps, generator)):
        for group, start in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = start * cosine(step, steps)
        logits = tuned(take(inputs, rows[chosen]))
        loss = cross_entropy(logits, labels[chosen].to(device), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuned


def layer_groups(encoder: nn.Module, head: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the head at `rate`, each block of the encoder at `decay` times the next one's."""
    parameters = dict(encoder.named_parameters())
    blocks = list(grouped(parameters).values()) if parameters else []
    groups = [
        {"params": [parameters[name] for name in names], "lr": rate * decay ** (len(blocks) - index)}
        for index, names in enumerate(blocks)
    ]
    return [*groups, {"params": list(head.parameters()), "lr": rate}]
