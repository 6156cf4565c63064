"""Training sets of digits that differ in how many rotations, and how many background textures, they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.curation import Pool
from unseen.networks import Network
from unseen.papers.digit_styles import rotation
from unseen.shifts.sampling import derive_seed

ANGLES = tuple(range(0, 360, 30))
STYLES = 64
ROTATIONS_OF_A_SET = (1, 2, 3, 4, 6, 8, 12)
TEXTURES_OF_A_SET = (0, 1, 4, 16, 64)
AMPLITUDE = 0.3


@dataclass(frozen=True)
class TurnedImages:
    """Digits of scikit-learn at every angle, (12, N, 64) and (N,): for the proxy, to train on, and to test.

    textures  (65, 64) what is laid over images; the first is none
    """

    proxy: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    textures: Tensor

    @classmethod
    def draw(cls, seed: int, *, proxy: int = 200, train: int = 800, test: int = 400) -> TurnedImages:
        from sklearn.datasets import load_digits

        found, generator = load_digits(), torch.Generator().manual_seed(derive_seed(seed, 1))
        order = torch.randperm(len(found.target), generator=generator)[: proxy + train + test]
        images = torch.from_numpy(found.images / 16).float()[order][:, None]
        turned = torch.stack([rotation(images, 0, degrees=angle).flatten(1) for angle in ANGLES])
        labels = torch.from_numpy(found.target).long()[order]
        sizes = [proxy, train, test]
        first, second, third = zip(turned.split(sizes, 1), labels.split(sizes), strict=True)
        textures = torch.rand(STYLES + 1, 64, generator=generator) * AMPLITUDE
        textures[0] = 0
        return cls(first, second, third, textures)

    def training_set(self, generator: torch.Generator, size: int, *, balanced: bool) -> Pool:
        """`size` examples of a random number of rotations and of textures; `domain` is the rotation.

        balanced  as many of every class; else classes have shares of their own
        """
        images, labels = self.train

        def some(of: int, counts: tuple[int, ...]) -> Tensor:
            count = counts[int(torch.randint(len(counts), (), generator=generator))]
            return torch.randperm(of, generator=generator)[:count]

        def drawn(values: Tensor) -> Tensor:
            return values[torch.randint(len(values), (size,), generator=generator)]

        turn = drawn(some(len(ANGLES), ROTATIONS_OF_A_SET))
        textures = some(STYLES, TEXTURES_OF_A_SET) + 1
        style = drawn(textures) if len(textures) else torch.zeros(size, dtype=torch.int64)
        if balanced:
            classes = torch.arange(size) % 10
        else:
            shares = torch.rand(10, generator=generator).pow(4)
            shares[torch.randperm(10, generator=generator)[:2]] += 0.05  # two classes at least
            classes = torch.multinomial(shares, size, replacement=True, generator=generator)
        places = torch.stack([
            (labels == label).nonzero()[:, 0][
                torch.randint(int((labels == label).sum()), (size,), generator=generator)
            ]
            for label in range(10)
        ])  # fmt: skip
        row = places[classes, torch.arange(size)]
        return Pool((images[turn, row] + self.textures[style]).clamp(max=1), classes, turn)

    def accuracy(self, predict: Callable[[Tensor], Tensor]) -> float:
        """Accuracy on the test digits at all angles."""
        images, labels = self.test
        return float((predict(images.flatten(0, 1)) == labels.repeat(len(ANGLES))).double().mean())


def trained_on_turned(
    data: TurnedImages, seed: int, widths: tuple[int, ...] = (64, 32), steps: int = 600
) -> Network:
    """A perceptron that AdamW trained on the proxy's digits under random rotations: an off-the-shelf model."""
    images, labels = data.proxy
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 2))
        layers: list[nn.Module] = []
        for before, after in zip((64, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        network = Network(nn.Sequential(*layers), widths[-1], 10)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    for _ in range(steps):
        turn, row = (torch.randint(n, (64,), generator=generator) for n in images.shape[:2])
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[turn, row]), labels[row]).backward()
        optimizer.step()
    return network.eval()


def support_vectors(pool: Pool) -> Callable[[Tensor], Tensor]:
    """Predictions of a support vector machine (RBF, C = 10) that is trained on a pool: no noise of training."""
    from sklearn.svm import SVC

    machine = SVC(C=10).fit(pool.x.numpy(), pool.y.numpy())
    return lambda x: torch.from_numpy(machine.predict(x.numpy()))


def consecutive(count: int, size: int) -> Iterator[Tensor]:
    """Rows of sets that lie one after the other in a pool."""
    return iter(torch.arange(count * size).split(size))
