"""Coherent gradients: robust means of gradients, which drop what few examples ask for.

They are nearer to zero than the mean, so steps are shorter: search the learning rate anew for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import updates
from unseen.updates.group_gradients import GroupGradients


def insert(ordered: list[Tensor], value: Tensor, length: int, larger: bool) -> Tensor | None:
    """Insert `value` into a list that is ordered in each coordinate, the largest (or smallest) values first.

    The list's tensors are changed; it keeps at most `length`, and what falls out at its end is returned. This
    takes passes of minimum and maximum: for short lists far faster than sorting along a dimension.
    """
    first, second = (torch.maximum, torch.minimum) if larger else (torch.minimum, torch.maximum)
    for present in ordered:
        rest = second(present, value)
        first(present, value, out=present)
        value = rest
    if len(ordered) < length:
        ordered.append(value)
        return None
    return value


class OrderedExtremes(GroupGradients):
    """Draws on the `level` largest and smallest gradients in each coordinate, and on the sum of the others.

    Level 0 is the mean itself. A batch of too few groups lowers the level. Gradients are not kept: memory is
    that of about 2 level + 4 of them. Time is a pass for each group: give `groups` (such as 16) for large
    batches.
    """

    def __init__(self, level: int = 1, groups: int | None = None, seed: int = 0):
        super().__init__(groups, seed)
        if level < 0 or (groups is not None and groups < 2 * level + 2):
            raise InputError(
                f"level {level} of {groups or 'any number of'} groups",
                "leaves no value between the extremes",
                "Give a level of 0 or more, and at least 2 level + 2 groups.",
            )
        self.level = level

    def level_of(self, count: int) -> int:
        """The level for a batch of `count` groups."""
        return max(0, min(self.level, (count - 2) // 2))


def split_extremes(
    gradients: Iterator[Tensor], length: int
) -> tuple[list[Tensor], list[Tensor], Tensor | float]:
    """In each coordinate: the `length` largest values, the `length` smallest, and the sum of the others."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    total: Tensor | float = 0.0
    for gradient in gradients:
        rest = insert(large, gradient, length, larger=True) if length else gradient
        if length and rest is not None:
            rest = insert(small, rest, length, larger=False)
        total = total if rest is None else total + rest
    return large, small, total


@updates.register(
    "winsorized",
    summary="Mean of the examples' gradients with the extreme ones of each coordinate drawn in",
    paper="Chatterjee & Zielinski 2022, arXiv 2203.10036",
    search={"level": ("choice", [1, 2, 4])},
)
class Winsorized(OrderedExtremes):
    """The mean once, in each coordinate, the `level` largest and smallest values are the next to them."""

    name = "winsorized"

    def robust_mean(self, gradients: Iterator[Tensor], count: int) -> Tensor:
        large, small, total = split_extremes(gradients, self.level_of(count) + 1)
        # `large` ends with the value that the larger ones become, `small` with that of the smaller ones
        for ordered in (large, small):
            total = total + len(ordered) * ordered[-1] if ordered else total
        return total / count  # type: ignore[return-value]


@updates.register(
    "trimmed",
    summary="Mean of the examples' gradients without the extreme ones of each coordinate",
    paper="Yin et al. 2018, arXiv 1803.01498",
    search={"level": ("choice", [1, 2, 4])},
)
class Trimmed(OrderedExtremes):
    """The mean, in each coordinate, of all but the `level` largest and smallest values."""

    name = "trimmed"

    def robust_mean(self, gradients: Iterator[Tensor], count: int) -> Tensor:
        level = self.level_of(count)
        _, _, total = split_extremes(gradients, level)
        return total / (count - 2 * level)  # type: ignore[return-value]


@updates.register(
    "sign-agreement",
    summary="Mean of the examples' gradients where enough of them agree on its sign",
    paper="Parascandolo et al. 2021, arXiv 2009.00329",
    search={"threshold": ("uniform", 0.0, 0.6)},
)
class SignAgreement(GroupGradients):
    """The mean, zero in coordinates where |mean sign| is below `threshold`, in [0, 1].

    Of k groups whose signs are chance, |mean sign| is about 0.8 / sqrt(k): choose the threshold above it.
    """

    name = "sign-agreement"

    def __init__(self, threshold: float = 0.3, groups: int | None = None, seed: int = 0):
        super().__init__(groups, seed)
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold}", "is not in [0, 1]", "Give a share of agreement.")
        self.threshold = threshold

    def robust_mean(self, gradients: Iterator[Tensor], count: int) -> Tensor:
        total = signs = None
        for gradient in gradients:
            total = gradient if total is None else total + gradient
            signs = gradient.sign() if signs is None else signs + gradient.sign()
        agreed = signs.abs() >= self.threshold * count - 1e-6  # type: ignore[union-attr]
        return total * agreed / count  # type: ignore[operator]


@updates.register(
    "median-of-means",
    summary="Median, in each coordinate, of the mean gradients of a few groups of examples",
    paper="Chatterjee & Zielinski 2022, arXiv 2203.10036",
    search={"groups": ("choice", [3, 5, 9])},
)
class MedianOfMeans(GroupGradients):
    """M3 for the default of three groups; of an even number the two in the middle are averaged."""

    name = "median-of-means"

    def __init__(self, groups: int = 3, seed: int = 0):
        super().__init__(groups, seed)

    def robust_mean(self, gradients: Iterator[Tensor], count: int) -> Tensor:
        ordered: list[Tensor] = []
        for gradient in gradients:
            insert(ordered, gradient, count, larger=False)
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
