"""The reproduction contract: conditions that are measured, claims with thresholds fixed before the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd

from unseen.errors import InputError
from unseen.studies.statistics import mean_interval

Scale = Literal["laptop", "full"]


@dataclass(frozen=True)
class Card:
    """Which paper this is and what of it is tested here."""

    number: int
    title: str
    authors: str
    venue: str
    arxiv: str
    claim: str
    """The paper's central claim, in a sentence."""
    here: str
    """What is done here: data, model, size."""
    not_here: str
    """What of the paper is out of reach at this size."""
    full: str
    """Data, model and hardware of the paper's own scale, which `--full` runs."""


@dataclass(frozen=True)
class Condition:
    """One thing that is compared. A control shows what happens when the claimed cause is taken away."""

    name: str
    role: Literal["method", "baseline", "control", "reference"]
    note: str = ""


class Row(NamedTuple):
    """One measured number."""

    condition: str
    metric: str
    value: float


Measured = Mapping[tuple[str, str], float]
"""What one seed measured: (condition, metric) -> value."""


@dataclass(frozen=True)
class Claim:
    """A statement with a number and a threshold that was fixed before the number was known.

    value    the number of one seed: a function of {(condition, metric): value}
    pooled   instead, the number of all seeds together: a function of the tidy table (seed, condition,
             metric, value); its interval is a bootstrap over seeds
    at_least, at_most
             the threshold; a claim with neither is reported without a verdict
    control  True when the claim is about a control: if it fails, the experiment itself is in doubt
    """

    name: str
    statement: str
    value: Callable[[Measured], float] | None = None
    pooled: Callable[[pd.DataFrame], float] | None = None
    at_least: float | None = None
    at_most: float | None = None
    control: bool = False

    def judge(self, table: pd.DataFrame) -> Judgement:
        """Mean, 95 % interval and verdict of this claim over the seeds of a tidy table."""
        if self.value is not None:
            per_seed = [self.value(measured) for measured in by_seed(table).values()]
            interval = mean_interval(per_seed)
            mean, low, high = float(np.mean(per_seed)), interval.low, interval.high
        elif self.pooled is not None:
            mean = self.pooled(table)
            low, high = _bootstrap(self.pooled, table)
        else:
            raise InputError(f"claim {self.name!r}", "has neither value nor pooled", "Give one of them.")
        return Judgement(self, mean, low, high)


@dataclass(frozen=True)
class Judgement:
    """A claim's number with its 95 % interval. The verdict goes by the mean; `clear` says whether the whole
    interval is on the same side of the threshold."""

    claim: Claim
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["holds", "refuted", "reported"]:
        if self.claim.at_least is None and self.claim.at_most is None:
            return "reported"
        return "holds" if self._passes(self.mean) else "refuted"

    @property
    def clear(self) -> bool:
        return self._passes(self.low) == self._passes(self.high) == self._passes(self.mean)

    def _passes(self, value: float) -> bool:
        above = self.claim.at_least is None or value >= self.claim.at_least
        return bool(above and (self.claim.at_most is None or value <= self.claim.at_most))

    @property
    def threshold(self) -> str:
        parts = []
        if self.claim.at_least is not None:
            parts.append(f">= {self.claim.at_least:g}")
        if self.claim.at_most is not None:
            parts.append(f"<= {self.claim.at_most:g}")
        return " and ".join(parts) or "-"


class Reproduction:
    """Subclasses give `card`, `conditions`, `claims` and `measure`; register them in `unseen.registry.papers`.

    seeds     at least three
    units     parts that can be measured (and resumed) on their own: one by default, or one a condition
    """

    card: ClassVar[Card]
    conditions: ClassVar[tuple[Condition, ...]]
    claims: ClassVar[tuple[Claim, ...]]
    metrics: ClassVar[Mapping[str, str]]
    """Metric name -> what it is, with its unit."""
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def units(self, scale: Scale) -> list[str]:
        return ["all"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        """Run one unit with one seed; the rows must not depend on other units or on global random state."""
        raise TypeError(f"{type(self).__name__} must define measure(unit, seed, scale)")

    def plot(self, table: pd.DataFrame) -> Any:
        """A matplotlib figure of the tidy table (seed, condition, metric, value)."""
        raise TypeError(f"{type(self).__name__} must define plot(table)")


def by_seed(table: pd.DataFrame) -> dict[int, Measured]:
    """Tidy table -> {seed: {(condition, metric): value}}."""
    return {
        int(seed): {(r.condition, r.metric): float(r.value) for r in rows.itertuples()}
        for seed, rows in table.groupby("seed")
    }


def verdict(judgements: list[Judgement]) -> str:
    """Of the whole: holds / refuted, either in part too by the majority, or in doubt when a control failed."""
    judged = [j for j in judgements if j.verdict != "reported"]
    if any(j.verdict == "refuted" for j in judged if j.claim.control):
        return "in doubt: a control failed"
    holding = sum(j.verdict == "holds" for j in judged if not j.claim.control)
    total = sum(not j.claim.control for j in judged)
    if total == 0:
        return "no claim is judged"
    if holding == total:
        return "holds"
    if holding == 0:
        return "refuted"
    failing = total - holding
    if failing > holding:
        return f"refuted in part ({failing} of {total} claims)"
    return f"holds in part ({holding} of {total} claims)"


def _bootstrap(
    function: Callable[[pd.DataFrame], float], table: pd.DataFrame, draws: int = 500
) -> tuple[float, float]:
    """Percentile interval from resampling seeds; every draw counts as seeds of its own."""
    parts = [rows for _, rows in table.groupby("seed")]
    generator = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        chosen = generator.integers(len(parts), size=len(parts))
        values.append(function(pd.concat([parts[i].assign(seed=n) for n, i in enumerate(chosen)])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
