import numpy as np
import pytest
from scipy.stats import norm

from unseen.errors import InputError
from unseen.measures.accuracy_line import accuracy_line


def test_models_on_a_line_are_found_there():
    at_home = np.array([0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
    elsewhere = norm.cdf(0.7 * norm.ppf(at_home) - 0.3)
    line = accuracy_line(at_home, elsewhere)
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((0.7, -0.3, 1))
    assert (line.low, line.high) == pytest.approx((1, 1))
    assert line.expected(0.75) == pytest.approx(norm.cdf(0.7 * norm.ppf(0.75) - 0.3))
    assert line.expected([0.75, 0.8]).shape == (2,)


def test_noise_lowers_what_the_line_explains():
    random = np.random.default_rng(0)
    at_home = random.uniform(0.5, 0.9, 30)
    line = accuracy_line(at_home, random.uniform(0.3, 0.6, 30), "linear")
    assert line.low < line.r_squared < line.high < 0.6
    few = accuracy_line([0.5, 0.6, 0.7], [0.4, 0.45, 0.6])
    assert np.isnan(few.low) and 0.8 < few.r_squared < 1


def test_what_makes_no_line_is_named():
    with pytest.raises(InputError, match="id_accuracy: has fewer than two"):
        accuracy_line([0.7, 0.7], [0.5, 0.6])
    with pytest.raises(InputError, match="ood_accuracy: has an accuracy of 0 or 1"):
        accuracy_line([0.7, 0.8], [0.5, 1.0])
    assert accuracy_line([0.7, 0.8], [0.5, 1.0], "linear").slope == pytest.approx(5)
