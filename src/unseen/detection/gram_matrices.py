"""How far the correlations within each layer leave the range that training showed."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.detection.layer_scores import require_layers
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.networks.taps import as_map
from unseen.registry import detectors

SMALLEST = 1e-6
"""Bounds closer to zero than this part of the largest one of their layer count as that far from it."""


def gram_sums(output: Tensor, powers: int) -> Tensor:
    """(B, C powers) row sums of the Gram matrices of order 1 to `powers` of a layer's output.

    Order p is the p-th root of the row sums of F^p F^p', of channels times places. Each map is divided by its
    largest value first, so that high powers overflow nowhere.
    """
    found = as_map(output.float())
    size = found.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
    unit, sums = found / size, []
    for power in range(1, powers + 1):
        raised = unit**power
        row = (raised @ raised.sum(1, keepdim=True).mT).squeeze(2)
        sums.append(row.sign() * row.abs() ** (1 / power) * size.squeeze(2) ** 2)
    return torch.cat(sums, 1)


@detectors.register(
    "gram",
    summary="Minus how far the Gram matrices of all layers leave their ranges in training",
    paper="Sastry & Oore 2020, arXiv 1912.12510",
    search={"powers": ("integer", 1, 10)},
)
class GramMatrices(Detector):
    """Minus the sum over layers of the deviation from the predicted class's range, over its expectation.

    powers  highest order of the Gram matrices

    The expectation is that of training inputs left out one at a time (only the two outermost inputs of each range
    matter), where the paper needs held-out ones. A class that no training input is predicted as has the range of
    all. Keeps 2 C classes powers numbers a layer.
    """

    needs_logits = True
    lowest: Tensor
    highest: Tensor
    expected: Tensor

    def __init__(self, powers: int = 10):
        super().__init__()
        if powers < 1:
            raise InputError("powers", f"are {powers}", "Give one at least.")
        self.powers = powers
        self.prefix = f"gram({powers})/"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        require_layers(layers, "gram")
        return {self.prefix + name: gram_sums(output, self.powers) for name, output in layers.items()}

    def fit(self, bank: Bank) -> Self:
        if len(bank) < 2:
            raise InputError(
                "detector's training outputs", f"are {len(bank)}", "Fit on two examples at least."
            )
        sums, sizes = self._sums(bank)
        predicted = require_finite(bank.logits, "logits").argmax(1)
        low, high, left_out = [], [], sums.new_zeros(sums.shape[1])
        for number in range(bank.logits.shape[1]):
            rows = sums[predicted == number]
            chosen = rows if len(rows) > 1 else sums
            ordered = chosen.sort(0).values
            low.append(ordered[0])
            high.append(ordered[-1])
            if len(rows) > 1:  # the outermost input of a range deviates from the range of the others
                left_out += (ordered[1] - ordered[0]) / _scale(ordered[1], sizes)
                left_out += (ordered[-1] - ordered[-2]) / _scale(ordered[-2], sizes)
        expected = torch.stack([part.sum() for part in left_out.split(sizes)]) / len(sums)
        self.keep(
            bank,
            lowest=torch.stack(low),
            highest=torch.stack(high),
            expected=expected.clamp(min=1e-12),
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        sums, sizes = self._sums(bank)
        predicted = require_finite(bank.logits, "logits").argmax(1)
        low, high = self.lowest[predicted], self.highest[predicted]
        beyond = (low - sums).clamp(min=0) / _scale(low, sizes) + (sums - high).clamp(min=0) / _scale(
            high, sizes
        )
        each = [part.sum(1) / e for part, e in zip(beyond.split(sizes, 1), self.expected, strict=True)]
        return -torch.stack(each).sum(0)

    def _sums(self, bank: Bank) -> tuple[Tensor, list[int]]:
        names = [name for name in bank.layers if name.startswith(self.prefix)] or [self.prefix]
        parts = [self.seen(bank, name) for name in names]
        return torch.cat(parts, 1), [part.shape[1] for part in parts]


def _scale(bound: Tensor, sizes: list[int]) -> Tensor:
    """A bound's size, kept off zero relative to the largest of its layer and input."""
    parts = [part.abs() for part in bound.split(sizes, -1)]
    floor = [SMALLEST * part.amax(-1, keepdim=True).clamp(min=1e-12) for part in parts]
    return torch.cat([torch.maximum(part, least) for part, least in zip(parts, floor, strict=True)], -1)
