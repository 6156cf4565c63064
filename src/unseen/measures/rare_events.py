"""Lower tails of loss distributions: how probable a loss is that hardly any sample, or none, has reached."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import special, stats

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.measures.arrays import as_numbers
from unseen.measures.extreme_values import extreme_tail
from unseen.measures.noncentral_chi2 import Array, NoncentralChi2, fit_likelihood, fit_moments, log_gamma_cdf

Family = Literal["ncx2", "ncx2-moments", "gamma", "normal", "kde", "extreme", "empirical"]
FEWEST = 30
FIT = 1000
"""Losses that the likelihood looks at: as many quantiles stand for a larger sample."""
REJECTED = 0.01


@dataclass(frozen=True)
class LossTail:
    """A distribution of losses that was fitted to a sample.

    family    what was fitted: "gamma" also where "ncx2" was asked for and could not be
    params    by name
    ks, pvalue
              of the Kolmogorov-Smirnov test; the p-value is too large, since the same losses were fitted
    smallest, count
              least loss and number of losses of the sample
    log_cdf   x (N,) > 0 -> ln P(loss <= x)
    """

    family: Family
    params: Mapping[str, float]
    ks: float
    pvalue: float
    smallest: float
    count: int
    log_cdf: Callable[[Array], Array]

    def extrapolated(self, target: float) -> bool:
        """Whether no loss of the sample is as small: the answer is the family's then, not the data's."""
        return bool(target < self.smallest)

    def decades(self, target: float) -> float:
        """Orders of magnitude from the smallest loss down to the target; 0 where there are smaller losses."""
        return max(math.log10(self.smallest) - math.log10(target), 0.0) if self.smallest > 0 else 0.0


def fit_tail(losses: Any, family: Family = "ncx2", *, like: LossTail | None = None) -> LossTail:
    """Fit a distribution to losses (N,), 30 at least, finite, not negative and not all the same.

    family  "ncx2": scaled non-central chi-squared by maximum likelihood, what squared errors of a Gaussian process
            nearly are (Boopathy et al., IJCAI 2024); a gamma distribution where it fits worse and is rejected.
            "ncx2-moments": by three moments; "gamma", "normal": by two; "kde": Gaussian kernels;
            "extreme": the lowest tenth extrapolated by extreme values; "empirical": shares of the sample
    like    an earlier fit of the same family, to start from

    Warns (UnseenWarning) where the Kolmogorov-Smirnov test rejects the fit at 1 %, but not with `like`.
    """
    values = as_losses(losses)
    if family not in get_args(Family):
        raise InputError(f"family {family!r}", "is not known", nearest(str(family), get_args(Family)))
    if values.min() == 0 and family in ("ncx2", "ncx2-moments", "gamma", "extreme"):
        raise InputError(
            "losses", f"hold zeros, where {family} has no density", "Give family='kde' or 'empirical'."
        )
    found = _fit(values, family, like)
    if like is None and found.pvalue < REJECTED:
        warnings.warn(
            f"rare events: the losses are not distributed like {found.family} (KS distance {found.ks:.3f}, p = "
            f"{found.pvalue:.1g}), so its tail is a guess. Compare families, or give targets that the sample reaches.",
            UnseenWarning,
            stacklevel=2,
        )
    return found


def as_losses(losses: Any) -> Array:
    """Losses (N,) of a sample, checked."""
    values = as_numbers("losses", losses)
    if not np.isfinite(values).all() or values.min() < 0:
        raise InputError("losses", "hold infinite or negative values", "Leave diverged hypotheses out.")
    if len(values) < FEWEST:
        raise InputError("losses", f"are {len(values)}", f"A tail needs {FEWEST} at least: sample more.")
    if np.ptp(values) <= 1e-12 * values.max():
        raise InputError("losses", "are all the same", "Hypotheses must differ: were they seeded alike?")
    return values


def _fit(values: Array, family: Family, like: LossTail | None) -> LossTail:
    if family == "ncx2":
        if like is not None and like.family == "gamma":  # it fitted better, see below
            return _with_quality(values, "gamma", *_gamma(values))
        found = fit_likelihood(_quantiles(values), None if like is None else NoncentralChi2(**like.params))
        fitted = None if found is None else _with_quality(values, "ncx2", found._asdict(), found.log_cdf)
        if fitted is None or fitted.pvalue < REJECTED:
            other = _with_quality(values, "gamma", *_gamma(values))
            return other if fitted is None or other.ks < fitted.ks else fitted
        return fitted
    if family == "ncx2-moments":
        by_moments = fit_moments(values)
        return _with_quality(values, family, by_moments._asdict(), by_moments.log_cdf)
    if family == "extreme":
        return _extreme(values)
    return _with_quality(values, family, *{"gamma": _gamma, "normal": _normal, "kde": _kernels,
                                           "empirical": _empirical}[family](values))  # fmt: skip


Fitted = tuple[dict[str, float], Callable[[Array], Array]]


def _gamma(values: Array) -> Fitted:
    shape, scale = float(values.mean() ** 2 / values.var()), float(values.var() / values.mean())
    return {"shape": shape, "scale": scale}, lambda x: log_gamma_cdf(shape, x / scale)


def _normal(values: Array) -> Fitted:
    mean, deviation = float(values.mean()), float(values.std())
    return {"mean": mean, "deviation": deviation}, lambda x: special.log_ndtr((x - mean) / deviation)


def _kernels(values: Array) -> Fitted:
    bandwidth = float(stats.gaussian_kde(values).factor * values.std(ddof=1))

    def log_cdf(x: Array) -> Array:
        parts = [
            special.log_ndtr((part[:, None] - values) / bandwidth)
            for part in np.split(x, range(256, len(x), 256))
        ]
        return special.logsumexp(np.concatenate(parts), axis=1) - math.log(len(values))

    return {"bandwidth": bandwidth}, log_cdf


def _empirical(values: Array) -> Fitted:
    ascending = np.sort(values)

    def log_cdf(x: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(np.searchsorted(ascending, x, side="right") / len(ascending))

    return {}, log_cdf


def _extreme(values: Array) -> LossTail:
    """The lowest losses are the largest of 1 / loss; above their threshold, the sample speaks for itself."""
    lowest = max(FEWEST, len(values) // 10) - 1
    ascending = np.sort(values)
    tail = extreme_tail(1 / ascending[: lowest + 1], lowest / len(values))
    if tail is None:
        raise InputError("losses", "have equal ones lowest", "Give another family: there is no tail here.")
    above = _empirical(values)[1]

    def log_cdf(x: Array) -> Array:
        below = [tail.log_share_above(1 / each) if 1 / each > tail.threshold else 0.0 for each in x]
        return np.where(1 / x > tail.threshold, below, above(x))

    params = {"index": tail.index, "scale": tail.scale, "threshold": 1 / tail.threshold}
    pvalue = float(stats.kstwo.sf(tail.ks, lowest))
    return LossTail("extreme", params, tail.ks, pvalue, float(values.min()), len(values), log_cdf)


def _with_quality(
    values: Array, family: Family, params: Mapping[str, float], log_cdf: Callable[[Array], Array]
) -> LossTail:
    test = stats.kstest(values, lambda x: np.exp(log_cdf(x)))
    exact = family == "empirical"
    return LossTail(
        family, {name: float(value) for name, value in params.items()},
        0.0 if exact else float(test.statistic), 1.0 if exact else float(test.pvalue),
        float(values.min()), len(values), log_cdf,
    )  # fmt: skip


def _quantiles(values: Array) -> Array:
    """The values, or FIT quantiles of them if there are more: likelihoods of thousands are slow, not better."""
    if len(values) <= FIT:
        return values
    return np.quantile(values, (np.arange(FIT) + 0.5) / FIT)
