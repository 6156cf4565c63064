import math

import numpy as np
import pytest
from scipy import stats

from unseen.errors import InputError
from unseen.measures.extreme_values import extreme_tail


@pytest.mark.parametrize(
    ("distribution", "index"),
    [(stats.pareto(4), 0.25), (stats.expon(), 0.0), (stats.beta(2, 3), -1 / 3), (stats.pareto(1), 1.0)],
)
def test_index_and_quantiles_of_known_tails(distribution, index):
    sample = np.sort(distribution.rvs(200_000, random_state=0))
    tail = extreme_tail(sample[-2001:], 2000 / len(sample))
    assert tail.index == pytest.approx(index, abs=0.12) and tail.ks < 0.05
    assert tail.largest == sample[-1] and tail.threshold == sample[-2001]
    far = 1e-6  # five times as rare as anything in the sample
    assert tail.quantile(far) == pytest.approx(distribution.isf(far), rel=0.5)
    assert tail.log_share_above(tail.quantile(far)) == pytest.approx(math.log(far))


def test_quantile_is_the_published_formula():
    sample = np.sort(stats.pareto(3).rvs(500, random_state=1))[::-1]
    tail = extreme_tail(sample[:51], 0.1)
    logs = np.log(sample[:50] / sample[50])
    first, second = logs.mean(), (logs**2).mean()
    minus = 1 - 0.5 / (1 - first**2 / second)
    gamma = first + minus
    scale = sample[50] * first * (1 - min(minus, 0))
    assert tail.quantile(1e-4) == pytest.approx(sample[50] + scale * ((0.1 / 1e-4) ** gamma - 1) / gamma)


def test_beyond_a_finite_end_there_is_nothing():
    sample = np.sort(stats.uniform.rvs(size=20_000, random_state=0))
    tail = extreme_tail(sample[-501:], 500 / len(sample))
    assert tail.index < 0 and tail.log_share_above(2.0) == -math.inf


def test_equal_values_have_no_tail():
    assert extreme_tail(np.ones(10), 0.1) is None


@pytest.mark.parametrize(
    ("values", "share", "message"),
    [
        ([1.0, 2], 0.1, "fewer than 3"),
        ([0.0, 1, 2], 0.1, "not positive"),
        ([1.0, 2, math.inf], 0.1, "not finite"),
        ([1.0, 2, 3], 0, "share: is 0"),
    ],
)
def test_errors_name_the_input(values, share, message):
    with pytest.raises(InputError, match=message):
        extreme_tail(values, share)
