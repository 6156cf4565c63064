"""Digits whose layout or angle drifts, and everything that may adapt to them with five labels a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unseen.adaptation.evaluate_stream import StreamOutcome, evaluate_stream
from unseen.adaptation.meta_ood import MetaOOD, uniform_loss
from unseen.adaptation.meta_tasks import MetaTask, transform_tasks
from unseen.adaptation.stream_methods import SupportNeighbours
from unseen.networks import Network
from unseen.shifts.builtin.digit_images import stratified_parts
from unseen.shifts.sampling import derive_seed
from unseen.shifts.task_streams import (
    Labelled,
    ShiftStream,
    Transform,
    rotated,
    transform_stream,
)
from unseen.training.system import seeded


@dataclass(frozen=True)
class Protocol:
    """Updates of ordinary training and of meta-training, examples of each in one, and what is averaged over.

    longer  ordinary steps that take about the time of one meta-step
    """

    start: int = 800
    meta: int = 600
    longer: int = 7
    batch: int = 64
    shots: int = 5
    draws: int = 3


STEPS = (0, 1, 3, 10)
RATE, OOD_WEIGHT = 0.1, 0.5
RATES = (0.03, 0.1, 0.3, 1.0)
"""Rates of adaptation among which the tuned conditions choose."""


@dataclass(frozen=True)
class Drift:
    """Shifts that training sees, those on which rates are chosen, and those that arrive."""

    train: dict[str, Transform]
    validation: dict[str, Transform]
    stream: dict[str, Transform]


@dataclass(frozen=True)
class Digits:
    """Inputs (N, 1, 8, 8) in [0, 1]: five ID classes in three parts, two of outliers for training, three unfamiliar."""

    train: Labelled
    validation: Labelled
    test: Labelled
    outliers: Tensor
    unfamiliar: Tensor


def digits(seed: int) -> Digits:
    """optdigits of scikit-learn, classes dealt anew for every seed; a 6 and a 9 are both ID or both not."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.from_numpy(found.images / 16).float().unsqueeze(1), torch.from_numpy(found.target).long()
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    while True:  # turned by 180 degrees, one would be the other
        order = torch.randperm(10, generator=generator).tolist()
        if (order.index(6) < 5) == (order.index(9) < 5):
            break
    place = torch.tensor([order.index(digit) for digit in range(10)])[y]
    known = (place < 5).nonzero().squeeze(1)
    tenths = stratified_parts(place[known], 10, generator)
    parts = [known[torch.cat(tenths[a:b])] for a, b in ((0, 5), (5, 7), (7, 10))]
    train, validation, test = (Labelled(x[rows], place[rows]) for rows in parts)
    return Digits(train, validation, test, x[(place >= 5) & (place < 7)], x[place >= 7])


def rearranged(images: Tensor, order: Sequence[int]) -> Tensor:
    """Images (B, 1, 8, 8) whose four 4 x 4 quadrants change places."""
    quadrants = images.view(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 4, 4)[:, list(order)]
    return quadrants.view(-1, 2, 2, 4, 4).transpose(2, 3).reshape(-1, 1, 8, 8)


def layouts(seed: int) -> Drift:
    """24 orders of the quadrants: 13 for training, the true one among them, 3 to choose rates on, 8 that arrive."""
    first, *rest = permutations(range(4))
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    dealt = [first, *(rest[i] for i in torch.randperm(23, generator=generator).tolist())]
    named: dict[str, Transform] = {
        "".join(map(str, order)): partial(rearranged, order=order) for order in dealt
    }
    names = list(named)
    return Drift(*({name: named[name] for name in part} for part in (names[:13], names[13:16], names[16:])))


def rotations(seed: int) -> Drift:
    """Angles of 0 to 60 degrees for training, 70 to choose rates at, 60 to 180 that arrive."""

    def turns(angles: Sequence[int]) -> dict[str, Transform]:
        return {f"{angle} degrees": partial(rotated, degrees=angle) for angle in angles}

    return Drift(turns(range(0, 61, 10)), turns([70]), turns(range(60, 181, 20)))


DRIFTS: dict[str, Callable[[int], Drift]] = {"layouts": layouts, "rotations": rotations}


def perceptron(seed: int, inputs: int = 64, classes: int = 5) -> Network:
    with seeded(seed, 3):
        layers = nn.Flatten(), nn.Linear(inputs, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU()
        return Network(nn.Sequential(*layers), 64, classes)


def train(
    network: nn.Module, x: Tensor, y: Tensor, outliers: Tensor, steps: int, batch: int, seed: int
) -> None:
    """Adam (1e-3) on cross-entropy and, weighed by a half, outlier exposure; changes the network.

    x (S, N, ...) and outliers (S, M, ...) under each of S shifts, y (N,); batches mix the shifts.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def some(inputs: Tensor) -> tuple[Tensor, Tensor]:
        shift, row = (torch.randint(size, (batch,), generator=generator) for size in inputs.shape[:2])
        return inputs[shift, row], row

    for _ in range(steps):
        (known, rows), (others, _) = some(x), some(outliers)
        logits = network(torch.cat([known, others]))
        loss = cross_entropy(logits[:batch], y[rows]) + OOD_WEIGHT * uniform_loss(logits[batch:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def drifting(name: str, seed: int, protocol: Protocol = Protocol()) -> dict[str, dict[str, float]]:
    """Condition -> metric -> value for one drift and one seed."""
    data, drift = digits(seed), DRIFTS[name](seed)
    networks, seconds = trained(data, drift, seed, protocol)
    streams = [
        transform_stream(*data.test, data.unfamiliar, drift.stream, shots=protocol.shots, seed=derive_seed(seed, d))
        for d in range(protocol.draws)
    ]  # fmt: skip
    choice = [  # outliers of the training stand for unfamiliar inputs: those of the test must choose nothing
        transform_stream(
            *data.validation, data.outliers, drift.validation, shots=protocol.shots, seed=derive_seed(seed, d)
        )
        for d in range(protocol.draws)
    ]
    found: dict[str, dict[str, float]] = {}
    for condition, network in networks.items():
        found[condition] = {"seconds": seconds[condition], **after_all_steps(network, streams)}
    for condition in ("erm-shifts", "mol"):
        network = networks[condition]
        rate = max(RATES, key=lambda rate: _merit(network, choice, rate))
        found[f"{condition}-tuned"] = {"rate": rate, **after(network, streams, 10, rate=rate)}
    prototypes = SupportNeighbours(networks["erm-shifts"].featurizer)
    outcomes = [evaluate_stream(prototypes, stream, reset=True) for stream in streams]
    found["prototypes"] = {
        "accuracy, 10 steps": _mean(outcomes, "accuracy"),
        "AUROC, 10 steps": _mean(outcomes, "auroc"),
    }
    return found


def trained(
    data: Digits, drift: Drift, seed: int, protocol: Protocol
) -> tuple[dict[str, Network], dict[str, float]]:
    """Networks of the conditions that differ in training, and their CPU seconds; all begin with the same weights."""
    source = {"source": lambda inputs: inputs}
    start, equal = protocol.start, protocol.start + protocol.meta
    plans = {
        "start": (drift.train, start),
        "erm-source": (source, equal),
        "erm-shifts": (drift.train, equal),
        "erm-shifts-longer": (drift.train, start + protocol.longer * protocol.meta),
        "oracle": ({**drift.train, **drift.stream}, equal),
    }
    networks, seconds = {}, {}
    for condition, (shifts, steps) in plans.items():
        began, network = process_time(), perceptron(seed)
        inputs = [torch.stack([shift(x) for shift in shifts.values()]) for x in (data.train.x, data.outliers)]
        train(network, inputs[0], data.train.y, inputs[1], steps, protocol.batch, seed)
        networks[condition], seconds[condition] = network, process_time() - began
    begin, before = networks.pop("start"), seconds.pop("start")
    for condition, order in (("mol-first-order", 1), ("mol", 2)):
        began = process_time()
        tasks = transform_tasks(
            *data.train, list(drift.train.values()), outliers=data.outliers, shots=protocol.shots,
            queries=protocol.batch, seed=derive_seed(seed, 5),
        )  # fmt: skip
        networks[condition] = meta_trained(begin, tasks, order, protocol.meta)
        seconds[condition] = before + process_time() - began
    return networks, seconds


def meta_trained(network: Network, tasks: Iterator[MetaTask], order: int, steps: int) -> Network:
    method = MetaOOD(network, inner_lr=RATE, inner_steps=3, order=order, ood_weight=OOD_WEIGHT)  # type: ignore[arg-type]
    return method.meta_fit(tasks, steps=steps).model  # type: ignore[return-value]


def after_all_steps(network: nn.Module, streams: Sequence[ShiftStream]) -> dict[str, float]:
    """Reset before every distribution after each number of steps; continual after ten, and what is forgotten then."""
    found: dict[str, float] = {}
    for steps in STEPS:
        found |= after(network, streams, steps)
    found["AUROC of energy, 10 steps"] = after(network, streams, 10, detector="energy")["AUROC, 10 steps"]
    continual = [
        evaluate_stream(MetaOOD(network, inner_lr=RATE, inner_steps=10), stream) for stream in streams
    ]
    forgetting = [outcome.forgetting["accuracy"] for outcome in continual if outcome.forgetting is not None]
    return found | {
        "accuracy, continual": _mean(continual, "accuracy"),
        "AUROC, continual": _mean(continual, "auroc"),
        "forgetting": float(np.mean(forgetting)),
    }


def after(
    network: nn.Module, streams: Sequence[ShiftStream], steps: int, rate: float = RATE, detector: str = "msp"
) -> dict[str, float]:
    """Means over distributions and draws, reset before each; AUROC is of the largest softmax."""
    method = MetaOOD(network, inner_lr=rate, inner_steps=steps, detector=detector)
    outcomes = [evaluate_stream(method, stream, reset=True) for stream in streams]
    return {
        f"accuracy, {steps} steps": _mean(outcomes, "accuracy"),
        f"AUROC, {steps} steps": _mean(outcomes, "auroc"),
    }


def _merit(network: nn.Module, streams: Sequence[ShiftStream], rate: float) -> float:
    found = after(network, streams, 10, rate)
    return found["accuracy, 10 steps"] + found["AUROC, 10 steps"]


def _mean(outcomes: Sequence[StreamOutcome], metric: str) -> float:
    return float(np.mean([outcome.area[metric] for outcome in outcomes]))
