import math
import warnings

import numpy as np
import pytest
from scipy import stats

from unseen.errors import InputError, UnseenWarning
from unseen.measures.rare_events import fit_tail

LOSSES = 1e-4 * stats.ncx2.rvs(40, 10, size=3000, random_state=0)
MIXED = np.concatenate(
    [np.full(300, 0.1) + np.linspace(0, 0.001, 300), np.full(300, 5) + np.linspace(0, 1, 300)]
)


def at(tail, x):
    return tail.log_cdf(np.array([x]))[0]


@pytest.mark.parametrize("family", ["ncx2", "ncx2-moments", "gamma", "kde", "extreme", "empirical"])
def test_every_family_knows_the_body_of_its_sample(family):
    tail = fit_tail(LOSSES, family)
    place = float(np.quantile(LOSSES, 0.02))
    assert at(tail, place) == pytest.approx(math.log(0.02), abs=0.15)
    assert tail.family == family and tail.pvalue > 0.05 and tail.count == 3000
    assert not tail.extrapolated(place) and tail.decades(place) == 0
    assert tail.extrapolated(LOSSES.min() / 10) and tail.decades(LOSSES.min() / 10) == pytest.approx(1)


def test_far_tails_of_the_right_family_are_right_and_of_a_wrong_one_tens_of_nats_off():
    place = 1e-4 * 2.0
    truth = stats.ncx2.logcdf(2.0, 40, 10)
    assert truth < -35
    assert at(fit_tail(LOSSES), place) == pytest.approx(truth, rel=0.1)
    with pytest.warns(UnseenWarning, match="not distributed like normal"):
        assert abs(at(fit_tail(LOSSES, "normal"), place) - truth) > 15
    assert at(fit_tail(LOSSES, "empirical"), place) == -math.inf


def test_simple_families_are_scipys():
    x = float(np.quantile(LOSSES, 0.3))
    mean, variance = LOSSES.mean(), LOSSES.var()
    assert at(fit_tail(LOSSES, "gamma"), x) == pytest.approx(
        stats.gamma.logcdf(x, mean**2 / variance, scale=variance / mean)
    )
    with pytest.warns(UnseenWarning):
        assert at(fit_tail(LOSSES, "normal"), x) == pytest.approx(stats.norm.logcdf(x, mean, LOSSES.std()))
    kde = stats.gaussian_kde(LOSSES)
    assert at(fit_tail(LOSSES, "kde"), x) == pytest.approx(
        math.log(kde.integrate_box_1d(-np.inf, x)), rel=1e-6
    )
    assert at(fit_tail(LOSSES, "empirical"), x) == pytest.approx(math.log(np.mean(np.sort(LOSSES) <= x)))


def test_extreme_values_extrapolate_a_power_law():
    losses = stats.uniform.rvs(size=20_000, random_state=0) ** 2  # P(loss <= x) = sqrt(x)
    tail = fit_tail(losses, "extreme")
    assert at(tail, 1e-12) == pytest.approx(math.log(1e-6), rel=0.15)
    assert at(tail, 0.25) == pytest.approx(math.log(0.5), abs=0.05), "above the threshold the sample speaks"


def test_a_rejected_fit_falls_back_to_gamma_or_says_so():
    with pytest.warns(UnseenWarning, match="not distributed like"):
        tail = fit_tail(MIXED)
    assert tail.pvalue < 0.01
    with pytest.warns(UnseenWarning):
        other = fit_tail(MIXED, "gamma")
    assert tail.ks <= other.ks


def test_a_fit_like_another_does_not_warn_and_keeps_its_family():
    with pytest.warns(UnseenWarning):
        first = fit_tail(MIXED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit_tail(MIXED[::2], like=first)
    assert again.family == first.family


def test_scaling_the_losses_scales_the_tail():
    small, large = fit_tail(LOSSES), fit_tail(LOSSES * 1e6)
    assert at(small, 3e-3) == pytest.approx(at(large, 3e3), rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "family", "message"),
    [
        (np.ones(29), "ncx2", "are 29"),
        (np.ones(50), "gamma", "all the same"),
        (np.linspace(-1, 1, 50), "ncx2", "negative"),
        (np.append(np.linspace(1, 2, 50), np.inf), "ncx2", "infinite"),
        (np.append(np.linspace(1, 2, 50), np.nan), "ncx2", "NaN"),
        (np.linspace(0, 1, 50), "ncx2", "hold zeros"),
        (np.linspace(1, 2, 50), "gama", "Did you mean 'gamma'"),
        (np.append(np.ones(60), 2), "extreme", "equal ones lowest"),
    ],
)
def test_errors_name_the_input(losses, family, message):
    with pytest.raises(InputError, match=message):
        fit_tail(losses, family)
