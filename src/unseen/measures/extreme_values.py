"""The upper tail of a distribution from its largest values, and quantiles beyond all that were seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unseen.errors import InputError
from unseen.measures.arrays import as_numbers


@dataclass(frozen=True)
class ExtremeTail:
    """P(Y > y) = share (1 + index (y - threshold) / scale)^(-1 / index) above the threshold.

    threshold, scale  in the unit of the values; the largest value is `largest`
    index             extreme-value index: above 0 a power law, below 0 a finite end, 0 exponential
    share             of all values that lie above the threshold
    ks                greatest distance between this and the empirical distribution above the threshold, in [0, 1]
    """

    threshold: float
    index: float
    scale: float
    share: float
    largest: float
    ks: float

    def quantile(self, share: float) -> float:
        """Value above which this share of the distribution lies; `share` at most that of the threshold."""
        ratio = self.share / share
        stretch = math.log(ratio) if abs(self.index) < 1e-9 else (ratio**self.index - 1) / self.index
        return self.threshold + self.scale * stretch

    def log_share_above(self, value: float) -> float:
        """ln P(Y > value), for values from the threshold on; -inf beyond a finite end."""
        return math.log(self.share) + float(_log_survival(value, self.threshold, self.scale, self.index))


def extreme_tail(values: Any, share: float) -> ExtremeTail | None:
    """Tail of the largest positive values (k + 1,), of which the smallest is the threshold.

    share  of the whole distribution that lies above the threshold, in (0, 1]
    The moment estimator of Dekkers, Einmahl & de Haan (Ann. Stat. 1989): its index may have either sign. None where
    the values are all alike: there is no tail then.
    """
    largest = np.sort(as_numbers("values", values))[::-1]
    if len(largest) < 3 or not 0 < largest[-1] <= largest[0] < math.inf:
        raise InputError("values", "are fewer than 3, not positive or not finite", "Give the largest values.")
    if not 0 < share <= 1:
        raise InputError("share", f"is {share}", "Give the share of all values that is above, in (0, 1].")
    threshold, above = largest[-1], largest[:-1]
    logarithms = np.log(above) - np.log(threshold)
    first, second = logarithms.mean(), (logarithms**2).mean()
    if second <= first**2:
        return None
    bounded = 1 - 0.5 / (1 - first**2 / second)
    index, scale = first + bounded, threshold * first * (1 - min(bounded, 0.0))
    fitted = np.exp(_log_survival(above, threshold, scale, index))
    steps = np.arange(len(above) + 1) / len(above)  # of the empirical survival function
    ks = max(np.abs(fitted - steps[1:]).max(), np.abs(fitted - steps[:-1]).max())
    return ExtremeTail(*map(float, (threshold, index, scale, share, largest[0], ks)))


def _log_survival(value: Any, threshold: float, scale: float, index: float) -> Any:
    """ln of the share of those above the threshold that are above `value` (generalised Pareto)."""
    excess = (np.asarray(value, dtype=np.float64) - threshold) / scale
    if abs(index) < 1e-9:
        return -excess
    with np.errstate(divide="ignore"):
        return -np.log(np.maximum(1 + index * excess, 0)) / index
