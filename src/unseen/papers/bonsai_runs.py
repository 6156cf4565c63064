"""What the Bonsai reproduction trains: penalties on Colored MNIST, begun from several representations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.networks import Network, build_network
from unseen.objectives.distillation import MultiHeadDistiller, average_heads
from unseen.objectives.rich_features import RichFeatures, RichRepresentation, initialize
from unseen.objectives.whole_data import WholeData
from unseen.papers.base import Row
from unseen.papers.coloured_mnist import (
    PAPER,
    ColouredDigits,
    Protocol,
    accuracies,
    coloured_mnist,
    new_network,
    train,
)
from unseen.papers.hessian_alignment import OBJECTIVES
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

PENALTIES = ("irm", "vrex", "fishr", "iga")
INVERSE: dict[str, Any] = {"flips": (0.2, 0.25), "noise": 0.1}
"""InverseColoredMNIST: the digit says more about the label than the colour does."""


@dataclass(frozen=True)
class Sizes:
    """Lengths of everything; the penalty counts from the first step, with the weight of `protocol`.

    first, rounds  updates of round 0; of the next round and the distillation
    head_steps     updates of a head on frozen features, which cost next to nothing
    weights        of the penalty, over which the spread is taken
    """

    protocol: Protocol = Protocol(copies=0, warmup=0, steps=160, penalty=1e4)
    first: int = 60
    rounds: int = 300
    head_steps: int = 400
    weights: tuple[float, ...] = (1e3, 1e4, 1e5)


FULL = Sizes(replace(PAPER, warmup=0, steps=1001, penalty=1e4), first=51, rounds=501, head_steps=1001)


def coloured(images: Tensor, digits: Tensor, seed: int, sizes: Sizes) -> Iterator[Row]:
    """The rows of Colored MNIST, for every condition."""
    protocol = sizes.protocol
    data = coloured_mnist(images, digits, seed, test=protocol.test, copies=protocol.copies)
    rich = discover(data, sizes, seed)
    start = initialize(_new(data, protocol, seed), rich)
    long = _erm(data, sizes.first + 2 * sizes.rounds, sizes, seed)
    unbalanced = _unbalanced(rich, data, sizes, seed)

    for condition, network in (("erm", rich.models[0]), ("second-round", rich.models[1]), ("rich", start)):
        yield from _alone(condition, network.cpu(), data)
    starts = {"random": _new(data, protocol, seed), "erm": rich.models[0], "rich": start}
    runs = {name: partial(_trained, network, data, sizes, seed) for name, network in starts.items()}
    for name, network in (
        ("erm", rich.models[0]),
        ("erm-long", long),
        ("unbalanced", unbalanced),
        ("rich", start),
    ):
        runs[f"{name}-frozen"] = partial(_trained, *_on_features(network, data), _heads(sizes), seed)
    for condition, run in runs.items():
        found = {name: run(name, protocol.penalty) for name in PENALTIES}
        for name, accuracy in found.items():
            yield Row(condition, name, accuracy["worst flip"])
        yield Row(
            condition, "flip 0.5", float(np.mean([accuracy["flip 0.5"] for accuracy in found.values()]))
        )
        if condition in ("random", "rich-frozen"):
            worst = {name: [found[name]["worst flip"]] for name in PENALTIES}
            for name in PENALTIES:
                others = [weight for weight in sizes.weights if weight != protocol.penalty]
                worst[name] += [run(name, weight)["worst flip"] for weight in others]
            yield Row(condition, "spread", float(np.mean([np.std(values) for values in worst.values()])))
        if condition == "rich-frozen":
            yield Row(condition, "erm", run("erm", protocol.penalty)["worst flip"])


def inverse(images: Tensor, digits: Tensor, seed: int, sizes: Sizes) -> Iterator[Row]:
    """The rows of InverseColoredMNIST: the second round by itself, and V-REx on the frozen features of both."""
    protocol = sizes.protocol
    data = coloured_mnist(images, digits, seed, test=protocol.test, copies=protocol.copies, **INVERSE)
    rich = discover(data, sizes, seed)
    start = initialize(_new(data, protocol, seed), rich)
    for condition, network in (("erm", rich.models[0]), ("second-round", rich.models[1])):
        yield Row(condition, "inverse", accuracies(network.cpu(), data)["worst flip"])
    for condition, network in (("erm-frozen", rich.models[0]), ("rich-frozen", start)):
        run = _trained(*_on_features(network, data), _heads(sizes), seed, "vrex", protocol.penalty)
        yield Row(condition, "inverse", run["worst flip"])


def discover(data: ColouredDigits, sizes: Sizes, seed: int) -> RichRepresentation:
    """Two rounds and their distillation. A second round without use would be kept: its use is judged here."""
    rich = RichFeatures(
        partial(new_network, data, sizes.protocol),
        first_steps=sizes.first,
        steps=sizes.rounds,
        stop=False,
        learning_rate=sizes.protocol.learning_rate,
        l2=sizes.protocol.l2,
        seed=derive_seed(seed, 3),
    )
    found = rich.fit(_whole(data), _device())
    for model in found.models:
        model.cpu()
    return found


def _unbalanced(rich: RichRepresentation, data: ColouredDigits, sizes: Sizes, seed: int) -> Network:
    """The same models, distilled on the training examples as they are."""
    teachers = [copy.deepcopy(model).to(_device()) for model in rich.models]
    student = _new(data, sizes.protocol, derive_seed(seed, 4)).to(_device())
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 7))
        distiller = MultiHeadDistiller(teachers, student)
    distiller.fit(
        WholeData.of(_whole(data), _device()),
        steps=sizes.rounds,
        learning_rate=sizes.protocol.learning_rate,
        l2=sizes.protocol.l2,
        generator=torch.Generator().manual_seed(derive_seed(seed, 5)),
    )
    network = _new(data, sizes.protocol, seed)
    network.featurizer.load_state_dict(distiller.network.featurizer.state_dict())
    network.head.load_state_dict(average_heads(distiller.heads).state_dict())
    return network


def _erm(data: ColouredDigits, steps: int, sizes: Sizes, seed: int) -> Network:
    """Plain training for as many updates as all rounds and the distillation have together."""
    return train(OBJECTIVES["erm"], data, replace(sizes.protocol, steps=steps), derive_seed(seed, 6))[0]


def _new(data: ColouredDigits, protocol: Protocol, seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 1))
        return new_network(data, protocol)


def _alone(condition: str, network: Network, data: ColouredDigits) -> Iterator[Row]:
    """A representation before any penalty."""
    found = accuracies(network, data)
    yield Row(condition, "alone", found["worst flip"])
    yield Row(condition, "alone, flip 0.5", found["flip 0.5"])


def _trained(
    start: Network, data: ColouredDigits, sizes: Sizes, seed: int, objective: str, weight: float
) -> dict[str, float]:
    """Accuracies after the last step of a copy of `start`."""
    protocol = replace(sizes.protocol, penalty=weight)
    network, _ = train(OBJECTIVES[objective], data, protocol, seed, network=copy.deepcopy(start))
    return accuracies(network, data)


def _heads(sizes: Sizes) -> Sizes:
    return replace(sizes, protocol=replace(sizes.protocol, steps=sizes.head_steps))


def _on_features(network: Network, data: ColouredDigits) -> tuple[Network, ColouredDigits]:
    """The head of a network, and the data as its frozen featurizer gives them."""

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return network.featurizer(x)

    tests = {flip: (features(x), y) for flip, (x, y) in data.tests.items()}
    head = build_network("linear", (network.features,), network.classes)
    head.head.load_state_dict(network.head.state_dict())
    return head, replace(data, x=features(data.x), tests=tests)


def _whole(data: ColouredDigits) -> Batch:
    return Batch(x=data.x, y=data.y, domain=data.domain, domains=2)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


PARTS: dict[str, Callable[[Tensor, Tensor, int, Sizes], Iterator[Row]]] = {
    "Colored MNIST": coloured,
    "InverseColoredMNIST": inverse,
}
"""What can be measured by itself."""
