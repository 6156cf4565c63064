"""Small backbones pretrained with labels, by contrast, by reconstruction or not at all, and judged by detectors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, mse_loss, normalize

from unseen.errors import InputError
from unseen.measures.linear_probe import LinearProbe
from unseen.networks.frozen import FrozenBackbone
from unseen.shifts.builtin.digit_images import mnist, over_photographs
from unseen.shifts.opening import open_shift
from unseen.shifts.sampling import derive_seed
from unseen.studies.pretraining_overlap import Encoder, OverlapReport, pretraining_overlap_report
from unseen.training.system import seeded

DETECTORS = ("msp", "max-logit", "energy", "knn(k=10)", "ssd")
SIX, FOUR, PHOTOGRAPHS = "six digits", "four digits", "photographs"
WIDTH = 32


@dataclass(frozen=True)
class Protocol:
    """Images of pretraining, its epochs, and images a class for the probe and for the test."""

    pretrain: int = 1000
    epochs: int = 40
    batch: int = 64
    probe: int = 100
    test: int = 150


Part = tuple[Tensor, Tensor]
"""Images (N, 1, 28, 28) in [0, 1] and digits (N,)."""


@dataclass(frozen=True)
class World:
    """MNIST for one seed: four digits are ID; `kept` of the others stay in pretraining where the rest is excluded.

    pool   images for pretraining, of all digits: no other part shares one
    probe  ID images for the probe and the detectors
    test   images of all digits
    """

    known: tuple[int, ...]
    kept: tuple[int, ...]
    left: tuple[int, ...]
    pool: Part
    probe: Part
    test: Part
    patches: Tensor


def world(seed: int, protocol: Protocol = Protocol()) -> World:
    images, digits = mnist()
    x = images.unsqueeze(1).float() / 255
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    order = torch.randperm(10, generator=generator).tolist()
    parts: list[list[Tensor]] = [[], [], []]
    for digit in range(10):
        rows = (digits == digit).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rest = len(rows) - protocol.probe - protocol.test
        for part, piece in zip(parts, rows.split([rest, protocol.probe, protocol.test]), strict=True):
            part.append(piece)
    pool, probe, test = (torch.cat(part) for part in parts)
    known, kept, left = order[:4], order[4:6], order[6:]
    probe = probe[torch.isin(digits[probe], torch.tensor(known))]
    black = torch.zeros(6 * protocol.test, 28, 28, dtype=torch.uint8)
    patches = over_photographs(black, generator).float().mean(1, keepdim=True) / 255
    return World(
        tuple(known), tuple(kept), tuple(left),
        (x[pool], digits[pool]), (x[probe], digits[probe]), (x[test], digits[test]), patches,
    )  # fmt: skip


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 15 degrees, scaled by up to a tenth, moved by up to two pixels."""
    draws = 2 * torch.rand(4, len(x), generator=generator) - 1
    angle, scale = draws[0] * math.radians(15), 1 + 0.1 * draws[1]
    rows = [
        torch.stack([angle.cos() * scale, -angle.sin() * scale, draws[2] / 7], 1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, draws[3] / 7], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def encoder(seed: int) -> nn.Module:
    """Three convolutions of stride 2 (16, 32 and 32 channels) and a layer of 32 features."""
    with seeded(seed, 2):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, WIDTH),
        )  # fmt: skip


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of two views (B, D) of B images: each finds the other among 2 B - 1 (Chen et al. 2020, eq. 1)."""
    views = normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    other = torch.arange(len(views)).roll(len(first))
    return cross_entropy(similarity, other)


def batches(
    part: Part, seed: int, epochs: int, batch: int
) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """Images, labels, and the generator for what is done to them; each epoch in a new order, the last batch whole."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    x, y = part
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(batch):
            if len(rows) == batch:
                yield x[rows], y[rows], generator


def supervised(part: Part, seed: int, protocol: Protocol) -> nn.Module:
    body = encoder(seed)
    numbers = part[1].unique()
    with seeded(seed, 4):
        head = nn.Linear(WIDTH, len(numbers))
    optimizer = _adam(body, head)
    for x, y, generator in batches(part, seed, protocol.epochs, protocol.batch):
        loss = cross_entropy(head(body(jittered(x, generator))), torch.searchsorted(numbers, y))
        _descend(optimizer, loss)
    return body


def contrastive(part: Part, seed: int, protocol: Protocol) -> nn.Module:
    """SimCLR with a projection of one hidden layer, temperature 0.2."""
    body = encoder(seed)
    with seeded(seed, 4):
        projection = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = _adam(body, projection)
    for x, _, generator in batches(part, seed, protocol.epochs, protocol.batch):
        views = [projection(body(jittered(x, generator))) for _ in range(2)]
        _descend(optimizer, contrastive_loss(*views))
    return body


def reconstruction(part: Part, seed: int, protocol: Protocol) -> nn.Module:
    """An autoencoder through the 32 features."""
    body = encoder(seed)
    with seeded(seed, 4):
        decoder = nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, 784))
    optimizer = _adam(body, decoder)
    for x, _, generator in batches(part, seed, protocol.epochs, protocol.batch):
        moved = jittered(x, generator)
        _descend(optimizer, mse_loss(decoder(body(moved)), moved.flatten(1)))
    return body


def _adam(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=1e-3)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


Pretrain = Callable[[Part, int, Protocol], nn.Module]
TRAINED: dict[str, Pretrain] = {
    "supervised": supervised,
    "contrastive": contrastive,
    "reconstruction": reconstruction,
}


def backbone(condition: str, w: World, seed: int, protocol: Protocol) -> nn.Module:
    """The pretrained encoder of a condition; all of a seed begin with the same weights."""
    method, _, excluded = condition.partition(", ")
    if method == "untrained":
        return encoder(seed)
    if method == "scratch":
        return supervised(_drawn(w.pool, w.known, protocol.pretrain), seed, protocol)
    digits = w.known + w.kept if excluded else tuple(range(10))
    return TRAINED[method](_drawn(w.pool, digits, protocol.pretrain), seed, protocol)


def _drawn(pool: Part, digits: tuple[int, ...], count: int) -> Part:
    """`count` images of the pool, as many of each of the given digits."""
    x, y = pool
    rows = [(y == digit).nonzero().squeeze(1)[: -(-count // len(digits))] for digit in digits]
    chosen = torch.cat(rows)
    return x[chosen], y[chosen]


def judged(condition: str, seed: int, protocol: Protocol = Protocol()) -> dict[str, float]:
    """Metric -> value of one condition: its features, a probe on ID images, every detector, three unfamiliar sets."""
    w = world(seed, protocol)
    x, y = w.test
    inside, others, left = (
        torch.isin(y, torch.tensor(digits)) for digits in (w.known, w.kept + w.left, w.left)
    )
    report = pretraining_overlap_report(
        {condition: backbone(condition, w, seed, protocol)},
        w.probe,
        (x[inside], y[inside]),
        {SIX: (x[others], y[others]), FOUR: (x[left], y[left]), PHOTOGRAPHS: (w.patches, None)},
        detectors=DETECTORS,
        probe=LinearProbe(),
        seed=seed,
    )
    return rows_of(report)


def rows_of(report: OverlapReport) -> dict[str, float]:
    """Mean over the report's backbones, by names of metrics."""
    found = {}
    for (ood, spec), group in report.table.groupby(["ood", "detector"]):
        detector = str(spec).partition("(")[0]
        found[f"{ood}: AUROC of {detector}"] = float(group.auroc.mean())
        found[f"{ood}: FPR95 of {detector}"] = float(group.fpr95.mean())
        for name in ("separability", "id_vs_ood", "few_shot"):
            found[f"{ood}: {name}"] = float(group[name].mean())
    return found | {name: float(report.table[name].mean()) for name in ("id_accuracy", "id_loss")}


def folder(condition: str, seed: int) -> dict[str, float]:
    """The same of real backbones: half of a folder's classes is ID, the other familiar from pretraining alone.

    $UNSEEN_SUPERVISED and $UNSEEN_SELF_SUPERVISED name backbones, divided by commas; $UNSEEN_FAMILIAR is a folder
    domain/class/image of classes of the pretraining, $UNSEEN_NOVEL one of classes that it never saw.
    """
    variable = {"supervised": "UNSEEN_SUPERVISED", "contrastive": "UNSEEN_SELF_SUPERVISED"}[condition]
    named = os.environ.get(variable) or ("efficientnet-lite0" if condition == "supervised" else "")
    if not named:
        raise InputError(f"${variable}", "is not set", "Name self-supervised backbones, such as timm:NAME.")
    shift, novel = (open_shift(_folder(name)) for name in ("UNSEEN_FAMILIAR", "UNSEEN_NOVEL"))
    generator = torch.Generator().manual_seed(derive_seed(seed, 5))
    classes = torch.randperm(len(shift.classes), generator=generator)
    known = torch.isin(shift.labels, classes[: len(classes) // 2])
    order = torch.randperm(len(shift), generator=generator)
    inside, others = order[known[order]], order[~known[order]]
    train, test = inside[: len(inside) // 2], inside[len(inside) // 2 :]
    encoders: dict[str, Encoder] = {name: FrozenBackbone.unscaled(name) for name in _split(named)}
    report = pretraining_overlap_report(
        encoders,
        (shift.take(train), shift.labels[train]),
        (shift.take(test), shift.labels[test]),
        {
            "PT-OOD": (shift.take(others), shift.labels[others]),
            "non-PT-OOD": (novel.inputs, novel.labels + len(shift.classes)),
        },
        detectors=DETECTORS,
        seed=seed,
    )
    return {f"full: {metric}": value for metric, value in rows_of(report).items()}


def _split(named: str) -> list[str]:
    """Names divided by commas, but for those inside parentheses, which belong to options."""
    parts, depth = [""], 0
    for sign in named:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _folder(variable: str) -> str:
    path = os.environ.get(variable, "")
    if not os.path.isdir(path):
        raise InputError(f"${variable}", f"is {path!r}, no folder", "Name a folder domain/class/image.")
    return path
