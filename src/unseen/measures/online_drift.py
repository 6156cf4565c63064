"""Detectors of change in a stream of numbers, one number at a time: ADWIN, Page-Hinkley, DDM and KSWIN.

    detector = ADWIN()
    for score in scores:
        if detector.update(score) is DriftState.DRIFT:
            ...

After a drift a detector goes on by itself: ADWIN and KSWIN keep the recent part, the others begin anew. The first
three alarm at the same number as river's, whose ADWIN by default looks for a change at every 32nd number only and
whose Page-Hinkley forgets; river is left out of the dependencies, as `unseen watch` needs one class of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from enum import Enum
from typing import Literal

import numpy as np

from unseen.errors import InputError


class DriftState(Enum):
    """What a detector says after a number."""

    STABLE = "stable"
    WARNING = "warning"
    DRIFT = "drift"


class OnlineDetector(ABC):
    """`update(value)` takes the next number and says how things stand; `reset()` forgets all numbers."""

    low, high = -math.inf, math.inf
    """Numbers that the detector takes."""

    def update(self, value: float) -> DriftState:
        """State after `value`. Raises InputError when it is not finite or outside the detector's range."""
        value = float(value)
        if not math.isfinite(value) or not self.low <= value <= self.high:
            asked = (
                "a finite number" if self.low == -math.inf else f"a number in [{self.low:g}, {self.high:g}]"
            )
            raise InputError("value", f"is {value}", f"{type(self).__name__} takes {asked}.")
        return self._update(value)

    @abstractmethod
    def reset(self) -> None: ...

    @abstractmethod
    def _update(self, value: float) -> DriftState: ...


class ADWIN(OnlineDetector):
    """Adaptive windowing for the mean of numbers in [0, 1] (Bifet & Gavaldà, SDM 2007).

    delta  confidence in (0, 1): about the chance of a false alarm (divided by the logarithm of the window's size
           for the many places where it may be cut, as the authors' implementation does)

    Drops the oldest numbers as long as two parts of the window have means further apart than
    sqrt(2 v ln(2/d) / m) + 2 ln(2/d) / (3 m), v the window's variance and 1/m = 1/n0 + 1/n1. The window is a list of
    buckets of 1, 2, 4, ... numbers, at most five of a size (an exponential histogram): time and memory of an update
    are of the order of the logarithm of the window. Either direction of change is found; `width` and `mean` are those
    of the window.
    """

    low, high = 0.0, 1.0
    buckets_of_a_size = 5

    def __init__(self, delta: float = 0.002):
        _check_share("delta", delta)
        self.delta = delta
        self.reset()

    def reset(self) -> None:
        self._levels: list[deque[tuple[float, float]]] = [deque()]
        """Of level i, oldest first: sum and sum of squared deviations of 2^i numbers each."""
        self.width, self._sum, self._squares = 0, 0.0, 0.0

    @property
    def mean(self) -> float:
        return self._sum / self.width if self.width else math.nan

    @property
    def variance(self) -> float:
        """Of the window, divided by its size; kept by bucket, so it stays accurate."""
        return self._squares / self.width if self.width else math.nan

    def _update(self, value: float) -> DriftState:
        if self.width:
            self._squares += (value - self.mean) ** 2 * self.width / (self.width + 1)
        self._levels[0].append((value, 0.0))
        self.width, self._sum = self.width + 1, self._sum + value
        self._compress()
        found = DriftState.STABLE
        while self._must_cut():
            self._drop_oldest()
            found = DriftState.DRIFT
        return found

    def _compress(self) -> None:
        for level, buckets in enumerate(self._levels):
            if len(buckets) <= self.buckets_of_a_size:
                return
            if level + 1 == len(self._levels):
                self._levels.append(deque())
            (first, first_squares), (second, second_squares) = buckets.popleft(), buckets.popleft()
            apart = (first - second) / 2**level
            squares = first_squares + second_squares + apart**2 * 2**level / 2
            self._levels[level + 1].append((first + second, squares))

    def _must_cut(self) -> bool:
        if self.width < 2:
            return False
        chance = math.log(2 * max(1.0, math.log(self.width)) / self.delta)
        variance, old, old_sum = self.variance, 0, 0.0
        for level in range(len(self._levels) - 1, -1, -1):
            for total, _ in self._levels[level]:
                old, old_sum = old + 2**level, old_sum + total
                new = self.width - old
                if not new:
                    return False
                size = 1 / (1 / old + 1 / new)
                bound = math.sqrt(2 / size * variance * chance) + 2 / (3 * size) * chance
                if abs(old_sum / old - (self._sum - old_sum) / new) > bound:
                    return True
        return False

    def _drop_oldest(self) -> None:
        level = len(self._levels) - 1
        total, squares = self._levels[level].popleft()
        size, rest = 2**level, self.width - 2**level
        rest_sum = self._sum - total
        apart = total / size - rest_sum / rest
        self._squares = max(0.0, self._squares - squares - apart**2 * size * rest / self.width)
        self.width, self._sum = rest, rest_sum
        while len(self._levels) > 1 and not self._levels[-1]:
            self._levels.pop()


class PageHinkley(OnlineDetector):
    """Page-Hinkley test for a change of the mean (Page, Biometrika 1954).

    tolerance  change per number, in units of the numbers, that is let pass
    threshold  of the sum of deviations beyond its extreme: larger means fewer false alarms, and later ones
    warm_up    numbers before the first alarm
    direction  "up" or "down": which change of the mean counts

    With m_t = sum of (x_i - mean of x_1..x_i - tolerance), drift when m_t - min m > threshold ("down": of -x).
    """

    def __init__(
        self,
        tolerance: float = 0.005,
        threshold: float = 50.0,
        warm_up: int = 30,
        direction: Literal["up", "down"] = "up",
    ):
        if tolerance < 0 or not threshold > 0:
            raise InputError(
                "tolerance and threshold",
                f"are {tolerance} and {threshold}",
                "Give >= 0 and a positive number.",
            )
        if direction not in ("up", "down"):
            raise InputError("direction", f"is {direction!r}", "Give 'up' or 'down'.")
        self.tolerance, self.threshold, self.warm_up, self.direction = (
            tolerance,
            threshold,
            warm_up,
            direction,
        )
        self.reset()

    def reset(self) -> None:
        self.count, self.mean, self._sum, self._least = 0, 0.0, 0.0, 0.0

    def _update(self, value: float) -> DriftState:
        value = value if self.direction == "up" else -value
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self._sum += value - self.mean - self.tolerance
        self._least = min(self._least, self._sum)
        if self.count < self.warm_up or self._sum - self._least <= self.threshold:
            return DriftState.STABLE
        self.reset()
        return DriftState.DRIFT


class DDM(OnlineDetector):
    """Drift detection method for errors, 1 wrong and 0 right (Gama et al., SBIA 2004).

    With the error rate p so far and s = sqrt(p (1 - p) / n): warning at p + s >= p_min + 2 s_min, drift at
    p_min + 3 s_min, where p_min and s_min are those of the least p + s. From `warm_up` numbers on, and from the first
    error on: before it s is 0, and one error would be a drift.
    """

    low, high = 0.0, 1.0

    def __init__(self, warm_up: int = 30):
        self.warm_up = warm_up
        self.reset()

    def reset(self) -> None:
        self.count, self.errors, self._least, self._rate, self._deviation = 0, 0, math.inf, 0.0, 0.0

    def _update(self, value: float) -> DriftState:
        if value not in (0.0, 1.0):
            raise InputError("value", f"is {value}", "DDM takes 1 for an error and 0 for none.")
        self.count, self.errors = self.count + 1, self.errors + int(value)
        if self.count < self.warm_up or not self.errors:
            return DriftState.STABLE
        rate = self.errors / self.count
        deviation = math.sqrt(rate * (1 - rate) / self.count)
        if rate + deviation < self._least:
            self._least, self._rate, self._deviation = rate + deviation, rate, deviation
            return DriftState.STABLE
        if self._deviation and rate + deviation >= self._rate + 3 * self._deviation:
            self.reset()
            return DriftState.DRIFT
        if self._deviation and rate + deviation >= self._rate + 2 * self._deviation:
            return DriftState.WARNING
        return DriftState.STABLE


class KSWIN(OnlineDetector):
    """Kolmogorov-Smirnov windowing (Raab et al., Neurocomputing 2020): finds changes of the whole distribution.

    alpha   level of one test; every number is tested, so false alarms come more often than one in 1/alpha windows
    window  numbers that are kept
    recent  of these, the newest, compared with as many drawn (with `seed`) from the older ones

    Drift when the distance of the two distribution functions exceeds sqrt(-ln(alpha) / recent); the recent numbers
    then are the window.
    """

    def __init__(self, alpha: float = 0.005, window: int = 100, recent: int = 30, seed: int = 0):
        _check_share("alpha", alpha)
        if not 1 <= recent <= window // 2:
            raise InputError("recent", f"is {recent}", f"Give 1 to {window // 2}, half the window.")
        self.alpha, self.window, self.recent, self.seed = alpha, window, recent, seed
        self.reset()

    def reset(self) -> None:
        self._values: deque[float] = deque(maxlen=self.window)
        self._generator = np.random.default_rng(self.seed)

    def _update(self, value: float) -> DriftState:
        self._values.append(value)
        if len(self._values) < self.window:
            return DriftState.STABLE
        values = np.array(self._values)
        older = self._generator.choice(values[: -self.recent], self.recent, replace=False)
        newest = values[-self.recent :]
        at = np.concatenate([older, newest])
        gaps = np.searchsorted(np.sort(older), at, "right") - np.searchsorted(np.sort(newest), at, "right")
        if np.abs(gaps).max() / self.recent <= math.sqrt(-math.log(self.alpha) / self.recent):
            return DriftState.STABLE
        self._values = deque(newest, maxlen=self.window)
        return DriftState.DRIFT


def _check_share(subject: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(subject, f"is {value}", "Give a number between 0 and 1, such as 0.002.")
