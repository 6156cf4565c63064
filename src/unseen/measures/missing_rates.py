"""How accuracy falls as more and more of the inputs is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.batch import Inputs
from unseen.shifts.missing_features import MissingMode, RandomFeatureMissing

RATES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class MissingRateCurve:
    """Accuracy in [0, 1] at each share of missing positions; two arrays of shape (R,), rates ascending."""

    rates: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean accuracy over the rates, as papers on missing modalities report it."""
        return float(self.accuracy.mean())

    @property
    def area(self) -> float:
        """Area under the curve (trapezoids) by the width of its rates, in [0, 1]."""
        if len(self.rates) == 1:
            return self.mean
        return float(np.trapezoid(self.accuracy, self.rates) / (self.rates[-1] - self.rates[0]))


def missing_rate_curve(
    predict: Callable[[Inputs], Tensor],
    x: Inputs,
    labels: Tensor,
    *,
    rates: Sequence[float] = RATES,
    mode: MissingMode = "element",
    fill: float | Mapping[str, float] = 0,
    keep: tuple[int, ...] = (),
    seed: int = 0,
) -> MissingRateCurve:
    """Accuracy of `predict` (inputs to classes (N,)) when a share of positions of every modality is missing.

    x       {name: (N, T, ...)} or a single tensor; labels (N,)
    rates   shares in [0, 1], one after the other; the masks of all are nested: what is missing at a rate is
            missing at every higher one, except in mode "block"
    mode, fill, keep  as in `RandomFeatureMissing`
    Raises InputError for no rates or rates that do not ascend.
    """
    if not len(rates) or any(later <= former for former, later in pairwise(rates)):
        raise InputError("rates", f"are {tuple(rates)}", "Give ascending shares from 0 to 1.")
    accuracy = []
    for rate in rates:
        mask = RandomFeatureMissing(rate, mode, fill=fill, keep=keep)
        masked, _ = mask(x, torch.Generator().manual_seed(seed))
        accuracy.append(float((predict(masked) == labels).double().mean()))
    return MissingRateCurve(np.array(rates, dtype=np.float64), np.array(accuracy))
