"""Digits as classes of several digits: a perceptron trained on them, and how well detectors know other digits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor, nn

from unseen.adaptation.augmentations import augment_images
from unseen.detection.metrics import ood_metrics
from unseen.networks import Bank, Network
from unseen.networks.prototypes import PrototypeBank
from unseen.objectives import Loss, Objective
from unseen.registry import Spec, detectors, objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.system import TrainingSystem, seeded

SIDE = 8
DETECTORS = {"SSD": Spec("ssd"), "Mahalanobis": Spec("mahalanobis"), "kNN": Spec.make("knn", k=10)}


@dataclass(frozen=True)
class Protocol:
    """Optimisation of one run (Adam, cosine), copies of each training image that views are drawn from, and the
    share of known digits that is for training."""

    steps: int = 900
    batch_size: int = 128
    learning_rate: float = 1e-3
    copies: int = 20
    train: float = 0.7


@dataclass(frozen=True)
class World:
    """views (N, copies, 64) of the training images (N, 64), in [0, 1]; labels; the digit behind each label; test
    images of the same digits, and unfamiliar images by name."""

    views: Tensor
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    test_digit: Tensor
    unfamiliar: dict[str, Tensor]
    classes: int


def merged_digits(seed: int, protocol: Protocol, *, merged: bool = True) -> World:
    """Six random digits of scikit-learn's, as three classes of two (`merged`) or as six; the other four are near,
    grey patches of a photograph are far. The same seed gives the same images and views either way."""
    from sklearn.datasets import load_digits, load_sample_image

    small = load_digits()
    images, digits = torch.from_numpy(small.images / 16.0).float(), torch.from_numpy(small.target).long()
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    place = torch.randperm(10, generator=generator).argsort()[digits]  # which of the random order a digit is
    known = (place < 6).nonzero().flatten()
    known = known[torch.randperm(len(known), generator=generator)]
    train, test = known.split(
        [int(protocol.train * len(known)), len(known) - int(protocol.train * len(known))]
    )
    copies = images[train].repeat_interleave(protocol.copies, 0).unsqueeze(1)
    views = augment_images(copies, generator, flip=False).view(len(train), protocol.copies, -1)
    grey = torch.from_numpy(load_sample_image("flower.jpg").mean(2) / 255.0).float()
    corners = torch.stack([torch.randint(s - SIDE, (300,), generator=generator) for s in grey.shape], 1)
    patches = [grey[top : top + SIDE, left : left + SIDE] for top, left in corners.tolist()]
    labels = place // 2 if merged else place
    return World(
        views=views,
        x=images[train].flatten(1),
        y=labels[train],
        test_x=images[test].flatten(1),
        test_y=labels[test],
        test_digit=digits[test],
        unfamiliar={"near": images[place >= 6].flatten(1), "far": torch.stack(patches).flatten(1)},
        classes=3 if merged else 6,
    )


class BothViews(Objective):
    """Cross-entropy of both views of each example: as much augmentation and computing as contrastive losses have."""

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(batch.x, Tensor)
        x, y = batch.x.flatten(0, 1), batch.y.repeat_interleave(2)
        return Loss(nn.functional.cross_entropy(model(x), y))


def train(objective: Spec | None, world: World, protocol: Protocol, seed: int) -> TrainingSystem:
    """A perceptron 64-128-64 after the last step, in evaluation mode; None trains by cross-entropy alone.

    Two of each image's copies are its views: conditions with one seed see the same ones in the same order.
    """
    loss_function = BothViews() if objective is None else objectives.build(objective)
    with seeded(seed, 2):
        layers = [nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
        network = Network(nn.Sequential(*layers), 64, world.classes)
        loss_function.setup(features=64, classes=world.classes, domains=1)
    system = TrainingSystem(network, loss_function)
    optimizer = torch.optim.Adam(system.parameters(), lr=protocol.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, protocol.steps)
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    for step in range(protocol.steps):
        rows = torch.randint(len(world.y), (protocol.batch_size,), generator=generator)
        pairs = torch.rand(len(rows), world.views.shape[1], generator=generator).topk(2, 1).indices
        x, domain = world.views[rows[:, None], pairs], torch.zeros_like(rows)
        loss = system(Batch(x, world.y[rows], domain, domains=1, ids=rows, step=step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()
    return system.eval()


@torch.no_grad()
def outputs(network: Network, x: Tensor, labels: Tensor | None = None) -> Bank:
    features = network.featurizer(x)
    return Bank(features, network.head(features), labels, head=network.head)


def judge(network: Network, world: World) -> dict[str, float]:
    """Accuracy, and AUROC ("near, kNN", ...) and FPR at 95 % TPR ("near FPR95, kNN") of each detector."""
    bank = outputs(network, world.x, world.y)
    test = outputs(network, world.test_x, world.test_y)
    found = {"accuracy": float(test.correct.float().mean())}
    for name, spec in {**DETECTORS, "MSP": Spec("msp")}.items():
        detector = detectors.build(spec).fit(replace(bank))
        familiar = detector.score(test)
        for kind, x in world.unfamiliar.items():
            scores = detector.score(outputs(network, x))
            metrics = ood_metrics(familiar, scores, confidence=None)
            found[f"{kind}, {name}"] = metrics.auroc
            found[f"{kind} FPR95, {name}"] = metrics.fpr95
    return found


@torch.no_grad()
def hidden_digits(system: TrainingSystem, prototypes: PrototypeBank, world: World) -> float:
    """Adjusted mutual information of an example's nearest prototype in its class and its digit, mean over classes.

    Zero by chance, one when every prototype stands for one digit and every digit has one.
    """
    z = system.objective.projector(system.network.featurizer(world.test_x))  # type: ignore[operator]
    cosines = prototypes.similarities(nn.functional.normalize(z, dim=1))
    own = world.test_y[:, None] == prototypes.labels
    nearest = cosines.masked_fill(~own, -torch.inf).argmax(1)
    scores = []
    for label in range(world.classes):
        members = world.test_y == label
        scores.append(adjusted_mutual_info_score(world.test_digit[members].numpy(), nearest[members].numpy()))
    return sum(scores) / len(scores)
