"""Inductive bias: the nats that single out hypotheses which generalise, among those that fit the training data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from unseen.errors import InputError
from unseen.measures.rare_events import Family, LossTail, as_losses, fit_tail

Unit = Literal["nats", "bits"]
UNITS = {"nats": 1.0, "bits": math.log(2)}


@dataclass(frozen=True)
class InductiveBias:
    """- ln P(test loss <= target) over the hypotheses of a space that fit the training data.

    value     in `unit`; inf where the family gives such losses no probability
    ci        95 % interval: bootstrap over the hypotheses, or exact (binomial) for "empirical"
    params    of the fitted family, by name
    ks, pvalue
              of the Kolmogorov-Smirnov test of the fit
    extrapolated
              whether the target lies below every sampled loss: then the family decides, and two good fits may differ
              by tens of nats, which the interval does not cover
    decades   how far below, in powers of ten of the loss
    family    what was fitted: "gamma" where "ncx2" failed
    """

    value: float
    ci: tuple[float, float]
    params: Mapping[str, float]
    ks: float
    extrapolated: bool
    pvalue: float
    decades: float
    family: Family
    target: float
    unit: Unit


def inductive_bias(
    losses: Any,
    target: float,
    family: Family = "ncx2",
    unit: Unit = "nats",
    *,
    bootstrap: int = 100,
    seed: int = 0,
) -> InductiveBias:
    """Information that finding a hypothesis with test loss <= target asks for (Boopathy et al., IJCAI 2024).

    losses  (N,) test losses of sampled hypotheses that fit the training data, 30 at least: means over test points (and
            outputs), in the unit of the target
    target  above 0
    family  see `unseen.measures.rare_events.fit_tail`, which warns where its fit is rejected

    Raises InputError for losses that are negative, not finite, too few or all the same, and for a target <= 0.
    """
    return _biases(as_losses(losses), [target], family, unit, bootstrap, seed)[0]


def compare_spaces(
    spaces: Mapping[str, Any],
    targets: Sequence[float],
    family: Family = "ncx2",
    unit: Unit = "nats",
    *,
    bootstrap: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Inductive bias that each space of hypotheses lacks, a row for each space and target.

    spaces   name -> losses (N,), all on the same training and test data
    targets  a grid of them makes curves: plot `value` over `target`
    Columns: space, target, value, low, high (95 %), unit, family, ks, pvalue, extrapolated, decades. The space with
    the smaller value already encodes more of the bias that the task asks for: the difference is what it supplies.
    """
    if not spaces:
        raise InputError("spaces", "are none", "Give {name: losses}.")
    rows = []
    for name, losses in spaces.items():
        for found in _biases(as_losses(losses), targets, family, unit, bootstrap, seed):
            low, high = found.ci
            rows.append({
                "space": name, "target": found.target, "value": found.value, "low": low, "high": high,
                "unit": unit, "family": found.family, "ks": found.ks, "pvalue": found.pvalue,
                "extrapolated": found.extrapolated, "decades": found.decades,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _biases(
    losses: Any, targets: Sequence[float], family: Family, unit: Unit, bootstrap: int, seed: int
) -> list[InductiveBias]:
    places = np.array(targets, dtype=np.float64)
    if not len(places) or not (np.isfinite(places) & (places > 0)).all():
        raise InputError("target", f"is {targets}", "Give positive losses.")
    if unit not in UNITS:
        raise InputError(f"unit {unit!r}", "is not known", "Give 'nats' or 'bits'.")
    if bootstrap < 20:
        raise InputError("bootstrap", f"is {bootstrap}", "An interval takes 20 resamples at least.")
    tail = fit_tail(losses, family)
    values = -tail.log_cdf(places)
    if family == "empirical":
        intervals = [_exact(losses, target) for target in places]
    else:
        random = np.random.default_rng(seed)
        draws = [
            -fit_tail(random.choice(losses, len(losses)), family, like=tail).log_cdf(places)
            for _ in range(bootstrap)
        ]
        # a quantile next to an infinite draw is that draw, not a mean with it
        intervals = list(zip(*np.quantile(draws, [0.025, 0.975], axis=0, method="nearest"), strict=True))
    return [
        _result(tail, target, value, interval, unit)
        for target, value, interval in zip(places, values, intervals, strict=True)
    ]


def _exact(losses: Any, target: float) -> tuple[float, float]:
    below = stats.binomtest(int((losses <= target).sum()), len(losses)).proportion_ci(method="exact")
    with np.errstate(divide="ignore"):
        return -np.log(below.high), -np.log(below.low)


def _result(
    tail: LossTail, target: float, value: float, interval: tuple[float, float], unit: Unit
) -> InductiveBias:
    # never -0.0 where all losses are below
    value, low, high = (max(float(each), 0.0) / UNITS[unit] + 0.0 for each in (value, *interval))
    return InductiveBias(
        value, (low, high), tail.params, tail.ks, tail.extrapolated(target), tail.pvalue, tail.decades(target),
        tail.family, float(target), unit,
    )  # fmt: skip
