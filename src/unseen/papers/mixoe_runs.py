"""What MixOE is measured on: digits of some classes, digits of others, patches of photographs; or folders."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Network
from unseen.papers.mixoe import BEFORE, CUTMIX, ENERGY, LONGER, MIXUP, OE, WITHIN
from unseen.registry import Spec
from unseen.shifts import Shift
from unseen.shifts.arrays import from_arrays
from unseen.shifts.holdout import holdout_split
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import take
from unseen.training import Learner, fit
from unseen.training.data import TrainingData, network_outputs

TUNINGS = {
    LONGER: "erm",
    OE: "oe(weight=1.0)",
    ENERGY: "energy-oe",
    MIXUP: "mixoe",
    CUTMIX: "mixoe(mix='cutmix', alpha=2.0)",
    WITHIN: "mixup(alpha=1.0)",
}
SIDE, KNOWN, TRAIN, COPIES = 8, 6, 240, 20
OUTLIERS, COARSE, SCALES = 3000, 800, (8, 16, 32)
MEAN, DEVIATION = 0.305, 0.376  # of the digits' pixels, in units of white


@dataclass(frozen=True)
class World:
    """A shift of the ID classes with known outliers, and inputs in its form to judge on.

    x, y    ID test inputs and their labels
    fine    inputs of classes of the same kind that were held out
    coarse  inputs of another kind, that no outlier was
    """

    shift: Shift
    x: Any
    y: Tensor
    fine: Any
    coarse: Any


@dataclass(frozen=True)
class Recipe:
    """The training of the classifier, and its fine-tuning."""

    base: Learner
    tuning: Learner


_DIGITS = Learner(
    network=Spec.make("mlp", width=64, depth=2), steps=600, batch_size=64, evaluations=1, keep="last"
)
DIGITS = Recipe(_DIGITS, _DIGITS.replace(learning_rate=5e-4))


def digit_world(seed: int, *, train: int = TRAIN, copies: int = COPIES, outliers: int = OUTLIERS) -> World:
    """Six of scikit-learn's digits with patches of one photograph as outliers; the other four, another photograph."""
    from sklearn.datasets import load_digits

    small = load_digits()
    digits = torch.from_numpy(small.target).long()
    images = torch.from_numpy(small.images / 16.0).float().unsqueeze(1)
    known, others = holdout_split(digits, KNOWN, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    rows = torch.isin(digits, known).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    test, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :][:train]
    views = moved(images[rest].repeat_interleave(copies, 0), generator)
    labels = torch.searchsorted(known, digits)
    names = [str(digit) for digit in known.tolist()]
    shift = from_arrays(
        _bytes(views),
        labels[rest].repeat_interleave(copies),
        torch.zeros(len(views), dtype=torch.int64),
        classes=names,
        name="digits",
    )
    return World(
        shift=shift.with_outliers(patches("china.jpg", outliers, generator)),
        x=_bytes(images[test]),
        y=labels[test],
        fine=_bytes(images[torch.isin(digits, others)]),
        coarse=patches("flower.jpg", COARSE, generator),
    )


def patches(photograph: str, count: int, generator: torch.Generator) -> Tensor:
    """uint8 (count, 1, 8, 8) grey patches of three sizes of one of scikit-learn's photographs, with
    the mean and deviation of the digits' pixels."""
    from sklearn.datasets import load_sample_image

    grey = torch.from_numpy(load_sample_image(photograph).mean(2) / 255.0).float()
    found = []
    for number in range(count):
        size = SCALES[number % len(SCALES)]
        top, left = (int(torch.randint(s - size + 1, (1,), generator=generator)) for s in grey.shape)
        patch = grey[None, None, top : top + size, left : left + size]
        found.append(interpolate(patch, (SIDE, SIDE), mode="area"))
    whole = torch.cat(found)
    whole = whole - whole.mean((2, 3), keepdim=True)
    return _bytes(MEAN + DEVIATION * whole / whole.std((2, 3), keepdim=True).clamp(min=1e-3))


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 1, S, S) each turned by up to 10 degrees, scaled by a tenth and moved by up to a pixel of eight."""
    angle, scale, right, down = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle, scale = angle * math.radians(10), 1 + 0.1 * scale
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cos, -sin, right / 4], 1), torch.stack([sin, cos, down / 4], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def folder_world(seed: int) -> World:
    """Six of ten classes of an image folder domain/class/image; folders of outliers and of coarse OOD images."""
    from unseen.papers.left_out_domains import image_folder
    from unseen.shifts.new_inputs import open_inputs
    from unseen.shifts.opening import open_shift
    from unseen.shifts.preprocessing import fit_preprocessing

    found = {name: os.environ.get(name, "") for name in ("UNSEEN_OUTLIERS", "UNSEEN_COARSE")}
    for name, folder in found.items():
        if not folder:
            raise InputError(f"{name}", "is not set", "Set it to a folder of images of none of the classes.")
    shift = open_shift(image_folder())
    known, others = holdout_split(shift.labels, max(2, round(KNOWN / 10 * len(shift.classes))), seed)
    rows = torch.isin(shift.labels, known).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))]
    test, train = rows[: len(rows) // 5], rows[len(rows) // 5 :].sort().values
    form = fit_preprocessing(shift, train[:32])
    opened = {name: open_inputs(folder, form)[0] for name, folder in found.items()}
    labels = torch.searchsorted(known, shift.labels)
    seen = replace(
        shift.subset(train),
        labels=labels[train],
        classes=tuple(shift.classes[label] for label in known.tolist()),
        domain=torch.zeros(len(train), dtype=torch.int64),
        domains=("all",),
    )
    return World(
        shift=seen.with_outliers(opened["UNSEEN_OUTLIERS"]),
        x=take(shift.inputs, test),
        y=labels[test],
        fine=take(shift.inputs, torch.isin(shift.labels, others).nonzero().squeeze(1)),
        coarse=opened["UNSEEN_COARSE"],
    )


def folder_recipe(examples: int) -> Recipe:
    """The paper's: 90 epochs, then 10 of fine-tuning at a learning rate of 1e-3, batches of 32, SGD, cosine."""
    network = Spec.of(os.environ.get("UNSEEN_NETWORK", "resnet(width=64)"))
    epoch = max(1, examples // 32)
    tuning = Learner(
        network=network,
        optimizer="sgd",
        schedule="cosine",
        weight_decay=1e-5,
        learning_rate=1e-3,
        batch_size=32,
        steps=10 * epoch,
    )
    return Recipe(tuning.replace(steps=90 * epoch, learning_rate=1e-2), tuning)


def measured(world: World, recipe: Recipe, seed: int) -> dict[str, dict[str, float]]:
    """Metrics of the classifier before and after each fine-tuning, which all begin from it."""
    data = TrainingData(world.shift.split(seed=seed, validation=0.1))
    base = fit(recipe.base, data.split, seed=seed, data=data).network
    found = {BEFORE: judged(base, world, data)}
    for name, objective in TUNINGS.items():
        learner = recipe.tuning.replace(objective=objective)
        tuned = fit(
            learner, data.split, seed=derive_seed(seed, 2), data=data, start=base.state_dict()
        ).network
        found[name] = judged(tuned, world, data, by_energy=name == ENERGY)
    return found


def judged(network: Network, world: World, data: TrainingData, by_energy: bool = False) -> dict[str, float]:
    """ID accuracy, and how well the largest probability (or log sum exp of the logits) tells fine and coarse."""

    def logits(inputs: Any) -> Tensor:
        return network_outputs(network, data.preprocessing, data.preprocessing.encode(inputs)).logits

    def familiarity(values: Tensor) -> Tensor:
        return values.logsumexp(1) if by_energy else values.softmax(1).amax(1)

    known = logits(world.x)
    found = {"accuracy": float((known.argmax(1) == world.y).float().mean())}
    for kind, inputs in (("fine", world.fine), ("coarse", world.coarse)):
        metrics = ood_metrics(familiarity(known), familiarity(logits(inputs)), confidence=None)
        found |= {f"{kind} AUROC": metrics.auroc, f"{kind} TNR95": 1 - metrics.fpr95}
    return found
