"""Colored MNIST as papers on invariance run it: full batch, a late penalty, three colour flips to judge by.

Arjovsky et al. 2019, arXiv 1907.02893, section 5.2, as the scripts of V-REx, Fishr and Hessian alignment have
it. It differs from what `Learner` does in two ways that matter: the L2 term is part of the loss, so it is
divided by the penalty's weight too, and Adam keeps its moments when the weight jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from unseen.measures.head_transfer import hessian_distance
from unseen.networks import Bank, Network, build_network
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import Spec, objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

TRAIN_FLIPS = (0.2, 0.1)
TEST_FLIPS = (0.9, 0.5, 0.1)
LABEL_NOISE = 0.25


@dataclass(frozen=True)
class Protocol:
    """Sizes and optimisation of one run.

    test    digits that are held out
    copies  how many turned and moved copies of each training digit are added
    l2      weight of the squared norm of all parameters in the loss
    penalty, warmup
            weight of the penalty after the first `warmup` steps, in which it is 1
    """

    test: int = 1000
    copies: int = 1
    width: int = 128
    steps: int = 300
    learning_rate: float = 5e-4
    l2: float = 1.1e-3
    penalty: float = 1e4
    warmup: int = 100


PAPER = Protocol(
    test=10_000,
    copies=0,
    width=390,
    steps=501,
    learning_rate=0.0004898536566546834,
    l2=0.00110794568,
    penalty=91257.18613115903,
    warmup=190,
)
"""The official script's, for the 60,000 digits of MNIST (50,000 of them for training)."""


@dataclass(frozen=True)
class ColouredDigits:
    """x (N, 2, 14, 14) in [0, 1] and y (N,) of the training domains together, of each test flip apart.

    domain  (N,) index into `TRAIN_FLIPS`
    """

    x: Tensor
    y: Tensor
    domain: Tensor
    tests: dict[float, tuple[Tensor, Tensor]]


def coloured_mnist(
    images: Tensor,
    digits: Tensor,
    seed: int,
    *,
    test: int,
    copies: int,
    grey: bool = False,
    flips: tuple[float, float] = TRAIN_FLIPS,
    noise: float = LABEL_NOISE,
) -> ColouredDigits:
    """Deal uint8 digits (N, 28, 28) to two training domains and one test set, which is coloured three times.

    A digit and its copies are in the same domain; each draws label noise and colour of its own.
    grey   no colour at all: what a learner reaches that cannot see it
    flips  of the colour in the training domains
    noise  share of labels that do not follow the digit
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    parts = []
    for flip, rows in zip(flips, order[test:].tensor_split(len(flips)), strict=True):
        pixels = images[rows].float()
        pixels = torch.cat([pixels, *(_moved(pixels, generator) for _ in range(copies))])
        parts.append(_coloured(pixels, digits[rows].repeat(1 + copies), flip, noise, grey, generator))
    held, held_digits = images[order[:test]].float(), digits[order[:test]]
    return ColouredDigits(
        torch.cat([x for x, _ in parts]),
        torch.cat([y for _, y in parts]),
        torch.repeat_interleave(torch.tensor([len(y) for _, y in parts])),
        {flip: _coloured(held, held_digits, flip, noise, grey, generator) for flip in TEST_FLIPS},
    )


def new_network(data: ColouredDigits, protocol: Protocol) -> Network:
    """A multi-layer perceptron as the scripts begin with it; weights are drawn from torch's global generator."""
    network = build_network(Spec.make("mlp", width=protocol.width, depth=2), data.x.shape[1:], 2)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def all_digits() -> tuple[Tensor, Tensor]:
    """The 60,000 digits of which the official scripts train on 50,000: `mnist.npz` in Keras' layout."""
    from unseen.shifts.builtin.data_folder import data_file

    with np.load(data_file("mnist.npz")) as stored:
        return torch.from_numpy(stored["x_train"]), torch.from_numpy(stored["y_train"].astype(np.int64))


def train(
    objective: Spec,
    data: ColouredDigits,
    protocol: Protocol,
    seed: int,
    *,
    domain: Tensor | None = None,
    network: Network | None = None,
) -> tuple[Network, float]:
    """A multi-layer perceptron after the last step, and its weighted penalty in units of its risk then.

    domain   other domains of the training examples than the true ones, for controls
    network  what training begins from, in place, instead of new weights
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if network is None:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, 1))
            network = new_network(data, protocol)
    network.to(device)
    loss_function = objectives.build(objective)
    loss_function.setup(features=network.features, classes=2, domains=len(TRAIN_FLIPS))
    loss_function.to(device)
    domain = data.domain if domain is None else domain
    batch = Batch(x=data.x, y=data.y, domain=domain, domains=len(TRAIN_FLIPS)).to(device)
    schedule = PenaltySchedule(protocol.penalty, protocol.warmup, 1.0, rescale_loss=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=protocol.learning_rate)
    for step in range(protocol.steps):
        loss = loss_function(network, replace(batch, step=step))
        decay = protocol.l2 * torch.stack([p.square().sum() for p in network.parameters()]).sum()
        risk, penalty = loss.parts.get("risk"), loss.parts.get("penalty")
        if risk is None or penalty is None:
            total = loss.total + decay
        else:
            total = schedule.loss(risk + decay, penalty, step).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    share = 0.0 if risk is None or penalty is None else protocol.penalty * float((penalty / risk).detach())
    return network.cpu(), share


@torch.inference_mode()
def accuracies(network: Network, data: ColouredDigits) -> dict[str, float]:
    """Accuracy at each test flip, and the least of them."""
    found = {
        f"flip {flip:g}": float((network(x).argmax(-1) == y).double().mean())
        for flip, (x, y) in data.tests.items()
    }
    return {**found, "worst flip": min(found.values())}


@torch.inference_mode()
def judge(network: Network, data: ColouredDigits) -> dict[str, float]:
    """Accuracy at each test flip and the least of them; spectral distances of the head's Hessians, between the
    training domains and, on average, from a training domain to the test set of the first flip."""
    unseen, _ = data.tests[TEST_FLIPS[0]]
    features = network.featurizer(torch.cat([data.x, unseen]))
    domain = torch.cat([data.domain, torch.full((len(unseen),), len(TRAIN_FLIPS))])
    names = (*map(str, TRAIN_FLIPS), str(TEST_FLIPS[0]))
    distance = hessian_distance(Bank(features, network.head(features), domain=domain, domains=names))
    return {
        **accuracies(network, data),
        "Hessian train-train": float(distance[0, 1]),
        "Hessian train-test": float(distance[:2, 2].mean()),
    }


def shuffled(domain: Tensor, seed: int) -> Tensor:
    """The same domains in random order: two halves that differ by chance only."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    return domain[torch.randperm(len(domain), generator=generator)]


def _coloured(
    pixels: Tensor, digits: Tensor, flip: float, noise: float, grey: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    labels = (digits >= 5) ^ (torch.rand(len(digits), generator=generator) < noise)
    colour = labels ^ (torch.rand(len(digits), generator=generator) < flip)
    channels = torch.stack([~colour, colour], 1).float()
    if grey:
        channels = torch.ones_like(channels)
    small = pixels[:, None, ::2, ::2] / 255
    return small * channels[:, :, None, None], labels.long()


def _moved(pixels: Tensor, generator: torch.Generator, degrees: float = 10, most: float = 2) -> Tensor:
    """Images (N, s, s), each turned by up to `degrees` and moved by up to `most` pixels either way."""
    from torch.nn.functional import affine_grid, grid_sample

    draws = 2 * torch.rand(len(pixels), 3, generator=generator) - 1
    angle, offset = torch.deg2rad(degrees * draws[:, 0]), draws[:, 1:] * 2 * most / pixels.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([cos, -sin, offset[:, 0]], 1)
    down = torch.stack([sin, cos, offset[:, 1]], 1)
    images = pixels[:, None]
    grid = affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)[:, 0]
