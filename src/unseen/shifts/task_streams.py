"""Streams of distributions that each bring a few labels: inputs change, familiar and unfamiliar ones alike.

    stream = rotation_stream(images, labels, unfamiliar, range(60, 181, 20), shots=5, seed=0)
    for task in stream:
        task.support, task.id_test, task.ood_test

`unseen.shifts.streams` orders examples without labels; here every step is a labelled task of its own, which
`unseen.adaptation.evaluate_stream` judges. Setting: Wu et al. 2023, arXiv 2309.11705 (continuously adaptive OOD
detection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unseen.errors import InputError, nearest
from unseen.shifts.corruptions.apply import corrupt
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

Transform = Callable[[Tensor], Tensor]


class Labelled(NamedTuple):
    """Network inputs (N, ...) and their classes (N,) int64, counted from 0."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class ShiftTask:
    """One distribution: what may be learned from, and what is judged.

    support   a few labelled ID examples
    id_test   other ID examples
    ood_test  inputs (M, ...) of none of the classes, shifted as the others are: otherwise a detector sees the shift
              alone, and looks better than it is
    """

    name: str
    support: Labelled
    id_test: Labelled
    ood_test: Tensor

    def __post_init__(self) -> None:
        counts = {
            "support": len(self.support.y),
            "id_test": len(self.id_test.y),
            "ood_test": len(self.ood_test),
        }
        for part, count in counts.items():
            if not count:
                raise InputError(f"{part} of task {self.name!r}", "is empty", "Give at least one example.")
        for part, (x, y) in (("support", self.support), ("id_test", self.id_test)):
            if len(x) != len(y):
                raise InputError(
                    f"{part} of task {self.name!r}",
                    f"has {len(x)} inputs, but {len(y)} labels",
                    "Give one label for each input.",
                )


@dataclass(frozen=True)
class ShiftStream:
    """Distributions in their order of arrival; `source` is that of the training, for what is forgotten of it."""

    tasks: tuple[ShiftTask, ...]
    source: ShiftTask | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise InputError("tasks", f"are named {names}", "Give at least one, each with a name of its own.")

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[ShiftTask]:
        return iter(self.tasks)

    def __getitem__(self, index: int) -> ShiftTask:
        return self.tasks[index]


def transform_stream(
    x: Tensor,
    y: Tensor,
    ood: Tensor,
    transforms: Mapping[str, Transform],
    *,
    shots: int = 5,
    seed: int = 0,
) -> ShiftStream:
    """One task for each transformation, which acts on ID and OOD inputs alike; the source is untransformed.

    x, y        ID inputs (N, ...) that training did not see, and their classes (N,)
    ood         inputs (M, ...) of other classes
    transforms  name -> function of inputs (B, ...), in order of arrival
    shots       labelled examples of each class that a task may learn from, drawn anew for every task; all others
                are its ID test
    Few shots depend on the draw: average over several seeds. Raises InputError where a class has no example left.
    """
    if shots < 1:
        raise InputError(
            "shots", f"is {shots}", "Give a number of labelled examples a class from 1, such as 5."
        )
    if len(x) != len(y):
        raise InputError("y", f"has {len(y)} labels for {len(x)} inputs", "Give one label for each input.")
    for label, count in enumerate(torch.bincount(y).tolist()):
        if count <= shots:
            raise InputError(
                f"class {label}", f"has {count} examples", f"Give more than shots={shots} of every class."
            )

    def task(name: str, number: int, transform: Transform) -> ShiftTask:
        chosen = support_rows(y, shots, torch.Generator().manual_seed(derive_seed(seed, number)))
        held = torch.ones(len(y), dtype=torch.bool)
        held[chosen] = False
        moved, moved_ood = transform(torch.cat([x, ood])).split([len(x), len(ood)])
        return ShiftTask(name, Labelled(moved[chosen], y[chosen]), Labelled(moved[held], y[held]), moved_ood)

    return ShiftStream(
        tuple(task(name, number, t) for number, (name, t) in enumerate(transforms.items(), 1)),
        source=task("source", 0, lambda inputs: inputs),
    )


def support_rows(labels: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Random rows, `shots` of each class that has more than that many."""
    chosen = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        if len(rows) > shots:
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Float images (B, C, H, W), turned counter-clockwise about their middle; zeros come in at the corners."""
    angle = torch.deg2rad(images.new_tensor(float(degrees)))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix = torch.cat([turn, turn.new_zeros(2, 1)], 1).expand(len(images), 2, 3)
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def rotation_stream(
    images: Tensor, labels: Tensor, ood: Tensor, angles: Sequence[float], *, shots: int = 5, seed: int = 0
) -> ShiftStream:
    """Float images (N, C, H, W), turned by each angle (degrees, counter-clockwise) in turn.

    Half a turn makes a 9 of a 6: such pairs must not be divided between ID and OOD. Otherwise as `transform_stream`.
    """
    transforms = {f"{angle:g} degrees": partial(rotated, degrees=angle) for angle in angles}
    return transform_stream(images, labels, ood, transforms, shots=shots, seed=seed)


def corruption_stream(
    images: Tensor,
    labels: Tensor,
    ood: Tensor,
    kinds: str | Sequence[str],
    severities: int | Sequence[int] = (1, 3, 5),
    *,
    shots: int = 5,
    seed: int = 0,
) -> ShiftStream:
    """Images (N, C, H, W), uint8 or float in [0, 1], with each kind of corruption at each severity in turn.

    kinds, severities  names of `unseen.shifts.corruptions.CORRUPTIONS`, and 1 to 5
    Otherwise as `transform_stream`.
    """
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    levels = (severities,) if isinstance(severities, int) else tuple(severities)
    transforms = {
        f"{name}-{level}": partial(corrupt, kind=name, severity=level, seed=seed)
        for name in names
        for level in levels
    }
    return transform_stream(images, labels, ood, transforms, shots=shots, seed=seed)


def domain_stream(
    shift: Shift,
    ood_classes: Sequence[str],
    preprocessing: Preprocessing,
    order: Sequence[str] | None = None,
    *,
    source: str | None = None,
    shots: int = 5,
    seed: int = 0,
) -> ShiftStream:
    """The real domains of a shift, such as the years of a collection, one after the other.

    ood_classes    classes that play the unfamiliar inputs; the others are numbered anew, in their order
    preprocessing  makes network inputs
    order          names of domains; by default as the shift names them, without the source
    source         the domain that was trained on, or None
    shots          for each class that has more of them in the domain; rarer ones are in its ID test alone
    Raises InputError for names that the shift does not have, and for a domain without ID support or OOD examples.
    """
    for name in ood_classes:
        if name not in shift.classes:
            raise InputError(f"class {name!r}", "is not a class of the data", nearest(name, shift.classes))
    domains = [name for name in shift.domains if name != source] if order is None else list(order)
    for name in (*domains, *([] if source is None else [source])):
        if name not in shift.domains:
            raise InputError(f"domain {name!r}", "is not a domain of the data", nearest(name, shift.domains))
    unfamiliar = torch.tensor([name in ood_classes for name in shift.classes])
    number = (~unfamiliar).long().cumsum(0) - 1
    generator = torch.Generator().manual_seed(seed)

    def inputs(rows: Tensor) -> Any:
        return preprocessing.finish(preprocessing.encode(shift.take(rows)))

    def task(name: str) -> ShiftTask:
        rows = (shift.domain == shift.domains.index(name)).nonzero().squeeze(1)
        out = unfamiliar[shift.labels[rows]]
        known, others = rows[~out], rows[out]
        chosen = support_rows(shift.labels[known], shots, generator)
        held = torch.ones(len(known), dtype=torch.bool)
        held[chosen] = False
        parts = known[chosen], known[held], others
        for part, part_rows in zip(("support", "id_test", "ood_test"), parts, strict=True):
            if not len(part_rows):
                raise InputError(f"{part} of domain {name!r}", "is empty", "Leave this domain out.")
        support, test = (Labelled(inputs(part), number[shift.labels[part]]) for part in parts[:2])
        return ShiftTask(name, support, test, inputs(others))

    return ShiftStream(tuple(map(task, domains)), None if source is None else task(source))
