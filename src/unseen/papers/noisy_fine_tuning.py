"""A perceptron trained on upright digits, and fine-tuned on turned ones of which some labels are wrong."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.curation import Pool
from unseen.networks import Network
from unseen.papers.digit_styles import rotation
from unseen.shifts.label_noise import NoiseKind, noisy_labels
from unseen.shifts.sampling import derive_seed

BATCH = 32


@dataclass(frozen=True)
class TurnedDigits:
    """Digits of scikit-learn in three parts of different images.

    general  upright, with true labels, to train the base model on
    target   turned, to fine-tune on; `truth` (N,) are its labels before any were made wrong
    test     true labels (N,), with the images upright and turned
    """

    general: Pool
    target: Pool
    truth: Tensor
    upright: Tensor
    turned: Tensor
    labels: Tensor

    @classmethod
    def draw(
        cls, seed: int, kind: NoiseKind | None, rate: float, *, degrees: float, size: int
    ) -> TurnedDigits:
        """`size` images each for the general and the target part, the others to test."""
        from sklearn.datasets import load_digits

        found = load_digits()
        order = torch.randperm(
            len(found.target), generator=torch.Generator().manual_seed(derive_seed(seed, 54))
        )
        images = torch.from_numpy(found.images / 16).float()[order]
        labels = torch.from_numpy(found.target).long()[order]
        upright, turned = images.flatten(1), rotation(images[:, None], 0, degrees=degrees).flatten(1)
        middle = slice(size, 2 * size)
        given = labels[middle]
        if kind is not None:
            wrong = noisy_labels(given.numpy(), rate, kind, classes=10, seed=derive_seed(seed, 55))
            given = torch.from_numpy(wrong)
        return cls(
            general=Pool(upright[:size], labels[:size]),
            target=Pool(turned[middle], given),
            truth=labels[middle],
            upright=upright[2 * size :],
            turned=turned[2 * size :],
            labels=labels[2 * size :],
        )


def base_network(general: Pool, seed: int, epochs: int = 60) -> Network:
    """A perceptron 64-128-64-10, trained on the general part."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 56))
        body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        network = Network(body, 64, 10)
    return fine_tuned(network, general, seed, epochs)


def fine_tuned(network: Network, pool: Pool, seed: int, epochs: int) -> Network:
    """A copy after so many epochs of SGD: momentum 0.9, learning rate 0.02, batches of 32."""
    learner = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(derive_seed(seed, 57))
    for _ in range(epochs):
        for rows in torch.randperm(len(pool), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(learner(pool.x[rows]), pool.y[rows]).backward()
            optimizer.step()
    return learner.eval()


@torch.no_grad()
def accuracies(network: Network, data: TurnedDigits) -> dict[str, float]:
    """Accuracy on turned ("target") and upright test digits."""
    return {
        name: float((network(x).argmax(-1) == data.labels).double().mean())
        for name, x in (("target", data.turned), ("upright", data.upright))
    }
