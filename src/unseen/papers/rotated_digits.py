"""Digits turned by known angles, a perceptron trained on some of them, and every way to let its heads answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from unseen.errors import UnseenWarning
from unseen.networks import Network
from unseen.networks.domain_heads import DomainHeads
from unseen.networks.steering import Steering, SteeringStream
from unseen.papers.digit_styles import rotation
from unseen.registry import Spec, objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import DomainSampler, derive_seed
from unseen.training.online_adapter import OnlineAdapter
from unseen.training.system import TrainingSystem

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Protocol:
    """Images of each source angle, test images (the same at every angle), updates, and images of an angle in one."""

    train: int = 500
    test: int = 500
    steps: int = 500
    batch: int = 64


@dataclass(frozen=True)
class RotatedDigits:
    """x (N, 196) in [0, 1], y (N,) and domain (N,) of the source angles; test examples by angle."""

    x: Tensor
    y: Tensor
    domain: Tensor
    tests: dict[int, Examples]


def rotated_digits(
    images: Tensor,
    digits: Tensor,
    seed: int,
    sources: Sequence[int],
    targets: Sequence[int],
    protocol: Protocol,
) -> RotatedDigits:
    """Deal uint8 digits (N, 28, 28): other images for every source angle, and others again for the test."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
    held, rest = order[: protocol.test], order[protocol.test :]
    parts = [rest[i * protocol.train : (i + 1) * protocol.train] for i in range(len(sources))]
    return RotatedDigits(
        torch.cat([_turned(images[rows], angle) for rows, angle in zip(parts, sources, strict=True)]),
        digits[torch.cat(parts)],
        torch.arange(len(sources)).repeat_interleave(protocol.train),
        {angle: (_turned(images[held], angle), digits[held]) for angle in (*sources, *targets)},
    )


def _turned(images: Tensor, angle: int) -> Tensor:
    """(N, 196) pixels of 14 x 14 images in [0, 1], turned by `angle` degrees."""
    return avg_pool2d(rotation(images[:, None].float() / 255, 0, degrees=angle), 2).flatten(1)


def trained(
    objective: Spec, data: RotatedDigits, seed: int, protocol: Protocol, *, domain: Tensor | None = None
) -> Network:
    """A perceptron 196-128-64 after the last step of Adam (1e-3), in evaluation mode.

    domain  other domains of the training examples than the true ones, for the control
    """
    domain = data.domain if domain is None else domain
    domains, loss_function = int(data.domain.max()) + 1, objectives.build(objective)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 2))
        network = loss_function.make_network(_perceptron, domains=domains)
        loss_function.setup(features=network.features, classes=network.classes, domains=domains)
    system = TrainingSystem(network, loss_function)
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-3)
    sampler = DomainSampler(torch.arange(len(domain)), domain, protocol.batch, derive_seed(seed, 3))
    for step in range(protocol.steps):
        rows = sampler.rows(step)
        batch = Batch(data.x[rows], data.y[rows], domain[rows], domains, ids=rows, step=step)
        optimizer.zero_grad()
        system(batch).total.backward()
        optimizer.step()
    return network.eval()


def _perceptron() -> Network:
    return Network(nn.Sequential(nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()), 64, 10)


def shuffled(domain: Tensor, seed: int) -> Tensor:
    """The same domains in random order: parts that differ by chance only."""
    return domain[torch.randperm(len(domain), generator=torch.Generator().manual_seed(derive_seed(seed, 4)))]


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    return float((predictions == labels).double().mean())


@torch.no_grad()
def ensemble_accuracy(networks: Sequence[Network], examples: Examples) -> float:
    """Accuracy of the mean of the networks' probabilities."""
    x, y = examples
    return accuracy(torch.stack([network(x).softmax(-1) for network in networks]).mean(0).argmax(-1), y)


def steered_accuracy(network: DomainHeads, examples: Examples, steering: Steering, size: int) -> float:
    """Accuracy when the examples arrive `size` at a time and each batch is steered by itself."""
    x, y = examples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenWarning)  # a last batch of one example falls back to prototypes
        answers = [steering.answer(network, part).predictions for part in x.split(size)]
    return accuracy(torch.cat(answers), y)


def oracle_accuracy(network: DomainHeads, examples: Examples) -> float:
    """Accuracy of the head that is best on these very examples."""
    x, y = examples
    answer = Steering().answer(network, x)
    return accuracy(answer.predictions, y) + answer.adaptivity_gap(y)


def mixed_stream(
    network: DomainHeads, tests: dict[int, Examples], size: int, seed: int
) -> dict[str, dict[int, float]]:
    """Accuracy by angle when examples of all angles arrive mixed, `size` at a time.

    "batch" steers every batch as a whole, "group" each angle by what has been seen of it
    """
    x, y = (torch.cat(parts) for parts in zip(*tests.values(), strict=True))
    angles = torch.tensor(list(tests)).repeat_interleave(torch.tensor([len(y) for _, y in tests.values()]))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(derive_seed(seed, 5)))
    x, y, angles = x[order], y[order], angles[order]
    stream = SteeringStream(network)
    answers: dict[str, list[Tensor]] = {"batch": [], "group": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenWarning)  # the first example of an angle is alone
        for part, names in zip(x.split(size), angles.split(size), strict=True):
            answers["batch"].append(Steering().answer(network, part).predictions)
            answers["group"].append(stream.answer(part, names.tolist()).predictions)
    return {
        unit: {angle: accuracy(torch.cat(found)[angles == angle], y[angles == angle]) for angle in tests}
        for unit, found in answers.items()
    }


def adapted(
    network: DomainHeads, tests: dict[int, Examples], angles: Sequence[int], size: int, **options: Any
) -> dict[int, float]:
    """Accuracy by angle when angles arrive one after the other and the heads learn from their own answers."""
    adapter = OnlineAdapter(network, learning_rate=1e-4, **options)
    return {
        angle: accuracy(
            torch.cat([adapter.answer(part).predictions for part in tests[angle][0].split(size)]),
            tests[angle][1],
        )
        for angle in angles
    }
