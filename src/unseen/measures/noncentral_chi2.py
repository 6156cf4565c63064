"""Scaled non-central chi-squared: densities and lower tails that do not underflow, and a fit that does not get lost.

s chi2_nc(df, nc) is described by its mean, its variance and r = nc / (df + nc) in [0, 1), the share of the mean that
is non-centrality; r = 0 is a gamma distribution. s = variance / (2 mean (1 + r)), df + nc = mean / s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]

STARTS = (0.05, 0.5, 0.95)
"""Of r, beside that of the moments."""
LEAST, MOST = 1e-6, 0.999
"""Bounds of r in the fit."""


class NoncentralChi2(NamedTuple):
    """Of scale * chi2_nc(df, nc)."""

    df: float
    nc: float
    scale: float

    @property
    def share(self) -> float:
        """r, see the top."""
        return self.nc / (self.df + self.nc)

    def log_density(self, x: Array) -> Array:
        """ln of the density at x (N,) > 0. SciPy's is -inf where its Bessel function underflows (df of hundreds)."""
        y, order = x / self.scale, self.df / 2 - 1
        bessel = log_bessel(order, np.sqrt(self.nc * y))
        return order / 2 * np.log(y / self.nc) - (y + self.nc) / 2 + bessel - math.log(2 * self.scale)

    def log_cdf(self, x: Array) -> Array:
        """ln P(X <= x) for x (N,) > 0, far below the smallest number that a float holds."""
        y = x / self.scale
        with np.errstate(all="ignore"):
            known = stats.ncx2.cdf(y, self.df, self.nc)
        found = np.log(np.where(known > 1e-10, known, 1.0))
        for i in np.flatnonzero(~(known > 1e-10)):
            found[i] = _log_tail(y[i] / 2, self.df / 2, self.nc / 2)
        return found


def from_moments(mean: float, variance: float, share: float) -> NoncentralChi2:
    """The one with this mean, variance and r."""
    scale = variance / (2 * mean * (1 + share))
    return NoncentralChi2(mean / scale * (1 - share), mean / scale * share, scale)


def fit_moments(losses: Array) -> NoncentralChi2:
    """By the first three moments; r is held to [1e-6, 0.999] where the skewness asks for more or less."""
    mean, variance = losses.mean(), losses.var()
    third = ((losses - mean) ** 3).mean()
    # third = 8 s variance - 8 s^2 mean, of which the smaller root has nc >= 0
    scale = (variance - math.sqrt(max(variance**2 - mean * third / 2, 0.0))) / (2 * mean)
    share = variance / (2 * mean * scale) - 1 if scale > 0 else MOST
    return from_moments(mean, variance, float(np.clip(share, LEAST, MOST)))


def fit_likelihood(losses: Array, start: NoncentralChi2 | None = None) -> NoncentralChi2 | None:
    """By maximum likelihood, from the moments and three other r, or from `start` alone; None if none converges."""
    mean, variance = losses.mean(), losses.var()

    def at(place: Array) -> NoncentralChi2:
        return from_moments(mean * math.exp(place[0]), variance * math.exp(place[1]), place[2])

    def cost(place: Array) -> float:
        found = -at(place).log_density(losses).mean()
        return found if math.isfinite(found) else 1e6

    shares = (start.share,) if start is not None else (fit_moments(losses).share, *STARTS)
    best = None
    for share in shares:
        first = np.array([0.0, 0.0, np.clip(share, LEAST, MOST)])
        bounds = [(-0.5, 0.5), (-1.5, 1.5), (LEAST, MOST)]
        found = optimize.minimize(cost, first, method="L-BFGS-B", bounds=bounds)
        if found.fun < 1e6 and (best is None or found.fun < best.fun):
            best = found
    return None if best is None else at(best.x)


def log_bessel(order: float, z: Array) -> Array:
    """ln I_order(z) for order > -1, z > 0: Debye's expansion (DLMF 10.41.3) where the function underflows."""
    with np.errstate(all="ignore"):
        scaled = special.ive(order, z)
    there = scaled > 1e-290
    found = np.log(np.where(there, scaled, 1.0)) + z
    if there.all():
        return found
    ratio = z[~there] / order
    root = np.sqrt(1 + ratio**2)
    p = 1 / root
    first = (3 * p - 5 * p**3) / 24
    second = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    found[~there] = (
        order * (root + np.log(ratio / (1 + root))) - 0.5 * np.log(2 * np.pi * order * root)
        + np.log1p(first / order + second / order**2)
    )  # fmt: skip
    return found


def log_gamma_cdf(shape: Array | float, x: Array | float) -> Array:
    """ln P(shape, x), the regularised lower incomplete gamma function (N,), also where it underflows."""
    shape, x = np.broadcast_arrays(*np.atleast_1d(shape, x))
    known = special.gammainc(shape, x)
    there = known > 1e-200
    found = np.log(np.where(there, known, 1.0))
    a, b = shape[~there], x[~there]
    found[~there] = a * np.log(b) - b - special.gammaln(a + 1) + np.log(special.hyp1f1(1, a + 1, b))
    return found


def _log_tail(x: float, shape: float, rate: float) -> float:
    """ln sum_j Poisson(j; rate) P(shape + j, x): the lower tail of non-central chi2 at 2 x, by its largest terms."""

    def terms(j: Array) -> Array:
        return j * math.log(rate) - rate - special.gammaln(j + 1) + log_gamma_cdf(shape + j, x)

    # the terms rise to one maximum and fall
    largest = optimize.minimize_scalar(
        lambda j: -terms(np.array([j]))[0], bounds=(0, rate + 1), method="bounded"
    ).x
    width = 10 * math.sqrt(rate) + 50
    return float(special.logsumexp(terms(np.arange(max(0, int(largest - width)), largest + width))))
