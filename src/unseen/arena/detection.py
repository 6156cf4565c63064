"""Detection: a light head finds objects on a backbone's feature maps, frozen or tuned; average precision of its boxes.

The paper trains a Cascade Mask R-CNN for days. Here the head is that of CenterNet (`networks.centre_head`), small
enough that what it finds is due to the maps, and is trained on maps that are computed once, without augmentation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unseen.arena.average_precision import average_precision, require_evaluator
from unseen.arena.backbones import Candidate
from unseen.arena.boxes import BoxData, BoxSplit
from unseen.arena.probe import Standardise, batches, cosine, layer_groups
from unseen.arena.protocols import Budget, Score, Task
from unseen.errors import InputError
from unseen.networks.centre_head import CentreHead, Found, centre_loss, centre_targets, decode
from unseen.networks.feature_maps import StoredMaps
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import take
from unseen.training.system import seeded

VALIDATION = 0.2
"""Share of the training images with boxes that choose the learning rate."""
BATCH = 64
"""Images that a trained detector reads at a time."""

Maps = Callable[[BoxSplit, Tensor], list[Tensor]]
"""maps(split, rows) -> feature maps of those images, finest first."""


@dataclass
class Detector:
    """Where feature maps come from, their standardisation by the training images, and a head."""

    maps: Maps
    standardise: list[Standardise]
    head: CentreHead

    def __call__(self, split: BoxSplit, rows: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.head.parameters()).device
        maps = [each.to(device) for each in self.maps(split, rows)]
        return self.head([norm(each) for norm, each in zip(self.standardise, maps, strict=True)])

    @torch.inference_mode()
    def find(self, split: BoxSplit, rows: Tensor) -> list[Found]:
        """Boxes in the given images."""
        found: list[Found] = []
        for part in rows.split(BATCH):
            centre, box = self(split, part)
            found += decode(centre.float().cpu(), box.float().cpu())
        return found

    def precision(self, split: BoxSplit, rows: Tensor) -> dict[str, float]:
        """AP and AP50 on the given images."""
        return average_precision(
            self.find(split, rows),
            *([each[row] for row in rows.tolist()] for each in (split.boxes, split.labels, split.crowd)),
        )


class Detection(Task):
    """AP and AP50 of a light head on frozen feature maps, on each test split of images with boxes.

    The learning rate is chosen by AP on training images that the seed sets aside. Backbones see images at the size
    of `data`, brought to their own. Raises MissingExtra without the extra `boxes`, and InputError for a split with
    too few boxes.
    """

    group = "detection"
    reads = "image"

    def __init__(self, data: BoxData, setting: str | None = None):
        require_evaluator()
        self.data, self.setting, self.example = data, setting or data.name, data.train.images
        if int((data.train.objects > 0).sum()) < 2:
            problem = f"has boxes in {int((data.train.objects > 0).sum())} image(s)"
            raise InputError(f"split {data.train.name!r}", problem, "Training and choice need two or more.")
        for test in data.tests:
            if not bool((test.objects > 0).any()):
                raise InputError(f"split {test.name!r}", "has no box", "Bring images with boxes.")

    @property
    def identity(self) -> str:
        splits = [(split.name, split.fingerprint) for split in (self.data.train, *self.data.tests)]
        return f"{type(self).__name__} {self.setting} {self.data.classes} {splits}"

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        generator = torch.Generator().manual_seed(derive_seed(seed, 9))
        train, validation = divided(self.data.train, generator)
        detector, chosen = self._fit(candidate, train, validation, budget, derive_seed(seed, 10))
        scores = []
        for test in self.data.tests:
            found = detector.precision(test, torch.arange(len(test)))
            for metric, value in found.items():
                scores.append(Score(f"{self.setting}: {test.name}", metric, value, chosen))
        return scores

    def _fit(
        self, candidate: Candidate, train: Tensor, validation: Tensor, budget: Budget, seed: int
    ) -> tuple[Detector, str]:
        """A head on frozen maps, and the learning rate that validation chose for it."""

        def trial(rate: float) -> Detector:
            with seeded(seed):
                head = CentreHead([channels for channels, _ in stored.shapes], len(self.data.classes))
            detector = Detector(frozen, standardise, head.to(device))
            groups = [{"params": list(head.parameters()), "lr": rate}]
            train_detector(
                detector, self.data.train, train, groups, budget.detector_steps, budget.detector_batch, seed
            )
            return detector

        def frozen(split: BoxSplit, rows: Tensor) -> list[Tensor]:
            return candidate.maps(split.images).take(rows)

        stored = candidate.maps(self.data.train.images)
        standardise = standardisation(stored, train)
        device = next(iter(candidate.encoder.parameters()), torch.zeros(0)).device
        return self._best(trial, budget.rates(5e-4, 1e-2), validation)

    def _best(
        self, trial: Callable[[float], Detector], rates: Tensor, validation: Tensor
    ) -> tuple[Detector, str]:
        best: tuple[float, Detector, float] | None = None
        for rate in rates.tolist():
            detector = trial(rate)
            value = detector.precision(self.data.train, validation)["AP"]
            if best is None or value > best[0]:
                best = (value, detector, rate)
        assert best is not None
        return best[1], f"rate {best[2]:.2g}"


class TunedDetection(Detection):
    """AP and AP50 after training the backbone, too, from the head that was trained on frozen maps.

    A head that starts at random would spoil the backbone in the few steps of the budget (Kumar et al. 2022, linear
    probing and then fine-tuning). layer_decay: a block's learning rate against the next one's.
    """

    group = "tuned detection"

    def __init__(self, data: BoxData, setting: str | None = None, layer_decay: float = 0.75):
        super().__init__(data, setting)
        if not 0 < layer_decay <= 1:
            raise InputError("layer_decay", f"is {layer_decay}", "Give a number in (0, 1].")
        self.layer_decay = layer_decay

    @property
    def identity(self) -> str:
        return f"{super().identity} {self.layer_decay}"

    def _fit(
        self, candidate: Candidate, train: Tensor, validation: Tensor, budget: Budget, seed: int
    ) -> tuple[Detector, str]:
        start, frozen_rate = super()._fit(candidate, train, validation, budget, seed)

        def trial(rate: float) -> Detector:
            encoder = copy.deepcopy(candidate.encoder).requires_grad_(True)

            def tuned(split: BoxSplit, rows: Tensor) -> list[Tensor]:
                return candidate.encode_maps(take(split.images, rows), encoder)

            detector = Detector(tuned, start.standardise, copy.deepcopy(start.head))
            groups = layer_groups(encoder, detector.head, rate, self.layer_decay)
            train_detector(
                detector, self.data.train, train, groups, budget.tuning_steps, budget.detector_batch, seed
            )
            return detector

        detector, rate = self._best(trial, budget.rates(1e-5, 3e-3), validation)
        return detector, f"{frozen_rate}, then {rate}"


def divided(split: BoxSplit, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows for validation, which are a share of the images with boxes."""
    with_boxes = (split.objects > 0).nonzero().squeeze(1)
    order = with_boxes[torch.randperm(len(with_boxes), generator=generator)]
    validation, rest = order.tensor_split([max(1, round(VALIDATION * len(order)))])
    background = (split.objects == 0).nonzero().squeeze(1)
    return torch.cat([rest, background]).sort().values, validation.sort().values


def standardisation(stored: StoredMaps, rows: Tensor) -> list[Standardise]:
    """For each map mean and deviation of its channels over places and the given images."""
    sums = [(torch.zeros(channels).double(), torch.zeros(channels).double()) for channels, _ in stored.shapes]
    for part in rows.split(BATCH):
        for (total, squares), each in zip(sums, stored.take(part), strict=True):
            total += each.double().sum((0, 2, 3))
            squares += each.double().square().sum((0, 2, 3))
    found = []
    for (total, squares), (_, side) in zip(sums, stored.shapes, strict=True):
        mean = total / (len(rows) * side**2)
        variance = (squares / (len(rows) * side**2) - mean.square()).clamp(min=0)
        found.append(Standardise.of(mean.view(-1, 1, 1), variance.view(-1, 1, 1)))
    return found


def train_detector(
    detector: Detector,
    split: BoxSplit,
    rows: Tensor,
    groups: list[dict[str, Any]],
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train the parameters of `groups` in place, on `rows` of a split: AdamW, weight decay 0.05, cosine decay.

    Gradients are cut at length 10, as one image with many objects would decide the first steps.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    initial = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, chosen in enumerate(batches(len(rows), batch, steps, generator)):
        for group, start in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = start * cosine(step, steps)
        picked = rows[chosen].tolist()
        kept = [~split.crowd[row] for row in picked]
        centre, box = detector(split, rows[chosen])
        targets = centre_targets(
            [split.boxes[row][keep] for row, keep in zip(picked, kept, strict=True)],
            [split.labels[row][keep] for row, keep in zip(picked, kept, strict=True)],
            centre.shape[1],
            centre.shape[2],
        )
        loss = centre_loss(centre, box, targets.to(centre.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
