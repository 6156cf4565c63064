import math

import mpmath
import numpy as np
import pytest
from scipy import special, stats

from unseen.measures.noncentral_chi2 import (
    NoncentralChi2,
    fit_likelihood,
    fit_moments,
    from_moments,
    log_bessel,
    log_gamma_cdf,
)

CASES = [(3, 10, 0.1), (40, 1, 1.0), (600, 300, 1e-4), (900, 5, 1e-3), (0.5, 30, 2.0)]


def sample(df, nc, scale, count=4000):
    return scale * stats.ncx2.rvs(df, nc, size=count, random_state=0)


def series(x, df, nc):
    """ln of the defining Poisson mixture, in forty digits."""
    with mpmath.workdps(40):
        half = mpmath.mpf(nc) / 2
        terms = (
            mpmath.exp(-half + j * mpmath.log(half) - mpmath.loggamma(j + 1))
            * mpmath.gammainc(mpmath.mpf(df) / 2 + j, 0, mpmath.mpf(x) / 2, regularized=True)
            for j in range(int(nc) + 60)
        )
        return float(mpmath.log(sum(terms)))


@pytest.mark.parametrize("case", CASES)
def test_density_and_distribution_are_scipys_where_scipy_has_them(case):
    df, nc, scale = case
    x = np.quantile(sample(*case), [0.001, 0.1, 0.5, 0.9])
    found = NoncentralChi2(*case)
    density = stats.ncx2.logpdf(x, df, nc, scale=scale)
    finite = np.isfinite(density)
    assert found.log_density(x)[finite] == pytest.approx(density[finite], rel=1e-6)
    assert found.log_cdf(x) == pytest.approx(stats.ncx2.logcdf(x, df, nc, scale=scale), rel=1e-6)


def test_the_trap_scipys_density_is_minus_infinity_at_the_mean():
    """Why the plain fit of images' losses goes astray."""
    df, nc = 1200, 0.5
    place = np.array([df + nc])
    assert stats.ncx2.logpdf(place, df, nc)[0] == -math.inf
    with mpmath.workdps(40):
        y = mpmath.mpf(place[0])
        bessel = mpmath.besseli(mpmath.mpf(df) / 2 - 1, mpmath.sqrt(nc * y))
        exact = float(
            mpmath.log(bessel)
            - (y + nc) / 2
            + (mpmath.mpf(df) / 4 - 0.5) * mpmath.log(y / nc)
            - mpmath.log(2)
        )
    assert NoncentralChi2(df, nc, 1.0).log_density(place)[0] == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("x", "df", "nc"), [(1e-3, 600, 300), (100, 600, 300), (2, 40, 7), (1e-9, 3, 10)])
def test_tails_below_the_smallest_float(x, df, nc):
    assert NoncentralChi2(df, nc, 1.0).log_cdf(np.array([x]))[0] == pytest.approx(series(x, df, nc), rel=1e-9)


def test_sankarans_approximation_agrees():
    """The closed form that the paper's code falls back to, with the logarithm of the normal tail."""
    df, nc, x = 600.0, 300.0, 300.0
    h = 1 - 2 / 3 * (df + nc) * (df + 3 * nc) / (df + 2 * nc) ** 2
    p = (df + 2 * nc) / (df + nc) ** 2
    m = (h - 1) * (1 - 3 * h)
    z = (x / (df + nc)) ** h - (1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p))
    z /= h * math.sqrt(2 * p) * (1 + 0.5 * m * p)
    exact = NoncentralChi2(df, nc, 1.0).log_cdf(np.array([x]))[0]
    assert special.log_ndtr(z) == pytest.approx(exact, rel=0.03)
    assert -(z**2) / 2 > exact, "z^2 / 2 alone leaves out the factor before the exponential"


def test_gamma_tail_and_bessel_beyond_underflow():
    assert log_gamma_cdf(2.0, np.array([1e-200, 1.0])) == pytest.approx(
        [-400 * math.log(10) - math.log(2), math.log(special.gammainc(2, 1))]
    )
    with mpmath.workdps(40):
        wanted = float(mpmath.log(mpmath.besseli(900, 20)))
    assert log_bessel(900.0, np.array([20.0]))[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_fits_find_the_moments_and_are_no_less_likely_than_the_truth(case):
    values = sample(*case)
    for found in (fit_moments(values), fit_likelihood(values)):
        mean, variance = found.scale * (found.df + found.nc), 2 * found.scale**2 * (found.df + 2 * found.nc)
        assert mean == pytest.approx(values.mean(), rel=0.02)
        assert variance == pytest.approx(values.var(), rel=0.1)
    assert (
        fit_likelihood(values).log_density(values).mean()
        >= NoncentralChi2(*case).log_density(values).mean() - 1e-4
    )


def test_three_moments_give_back_the_parameters():
    df, nc, scale = 5.0, 20.0, 0.3
    mean, variance = scale * (df + nc), 2 * scale**2 * (df + 2 * nc)
    found = from_moments(mean, variance, nc / (df + nc))
    assert found == pytest.approx((df, nc, scale)) and found.share == pytest.approx(0.8)
    third = fit_moments(sample(df, nc, scale, 400_000))
    assert third.df == pytest.approx(df, rel=0.2) and third.nc == pytest.approx(nc, rel=0.1)
