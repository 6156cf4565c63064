"""Accuracy on the line: over many models, accuracy elsewhere is a line in accuracy at home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, ndtri
from scipy.stats import linregress, norm

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_correct, same_length

Scaling = Literal["logit", "probit", "linear"]
_SCALINGS = {
    "logit": (logit, lambda x: 1 / (1 + np.exp(-x))),
    "probit": (ndtri, norm.cdf),
    "linear": (lambda x: x, lambda x: x),
}


@dataclass(frozen=True)
class AccuracyLine:
    """OOD accuracy = slope * ID accuracy + intercept, both on the `scaling` axis.

    r_squared  share of the variance that the line explains; with two models it is 1 and says nothing
    low, high  bootstrap interval of it over models; NaN for fewer than five, or without resamples
    """

    slope: float
    intercept: float
    r_squared: float
    low: float
    high: float
    scaling: Scaling

    def expected(self, id_accuracy: Any) -> NDArray[np.float64]:
        """OOD accuracy of an ordinary model with this ID accuracy; what is above it is effective robustness."""
        scaled = _scaled("id_accuracy", np.atleast_1d(as_array(id_accuracy)), self.scaling)
        _, back = _SCALINGS[self.scaling]
        return back(self.intercept + self.slope * scaled).reshape(np.shape(as_array(id_accuracy)))


def accuracy_line(
    id_accuracy: Any,
    ood_accuracy: Any,
    scaling: Scaling = "probit",
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("id_accuracy", "ood_accuracy"),
) -> AccuracyLine:
    """Fit the line through models (Miller et al., ICML 2021, where the axis is probit; Taori et al. 2020: logit).

    id_accuracy, ood_accuracy  (K,) of the same models, in (0, 1) unless the scaling is linear
    names                      what errors call the two
    Raises InputError for fewer than two distinct ID accuracies: they make no line.
    """
    if scaling not in _SCALINGS:
        raise InputError("scaling", f"is {scaling!r}", f"Give one of {', '.join(_SCALINGS)}.")
    x, y = (
        _scaled(name, each, scaling) for name, each in zip(names, (id_accuracy, ood_accuracy), strict=True)
    )
    same_length(names[1], y, names[0], len(x))
    if len(np.unique(x)) < 2:
        raise InputError(names[0], "has fewer than two distinct values", "A line needs two models at least.")
    line = linregress(x, y)
    low = high = np.nan
    if len(x) >= 5 and resamples:
        draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
        squares = [
            _correlation(x[draw], y[draw]) ** 2 for draw in draws if np.ptp(x[draw]) > 0 < np.ptp(y[draw])
        ]
        tail = (1 - confidence) / 2
        low, high = np.quantile(squares, [tail, 1 - tail])
    return AccuracyLine(
        float(line.slope), float(line.intercept), float(line.rvalue**2), float(low), float(high), scaling
    )


def _scaled(subject: str, accuracies: Any, scaling: Scaling) -> NDArray[np.float64]:
    values = _SCALINGS[scaling][0](as_correct(subject, accuracies))
    if not np.isfinite(values).all():
        raise InputError(
            subject,
            f"has an accuracy of 0 or 1, infinite on the {scaling} axis",
            "Leave it out, or use 'linear'.",
        )
    return values


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.corrcoef(x, y)[0, 1])
