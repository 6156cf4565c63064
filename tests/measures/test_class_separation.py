import numpy as np
import pytest
from scipy.spatial.distance import cdist

from unseen.errors import InputError, UnseenWarning
from unseen.measures import class_separation as module
from unseen.measures.class_separation import class_separation


def points(count=400, dimension=6, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dimension)), random.integers(0, 3, count)


def least(x, y):
    return cdist(x, x)[y[:, None] != y].min()


def test_the_least_distance_against_all_pairs(monkeypatch):
    x, y = points()
    assert class_separation(x, y, "min") == pytest.approx(least(x, y), rel=1e-9)
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 4000)
    assert class_separation(x + 100, np.array(list("abc"))[y], "min") == pytest.approx(least(x, y), rel=1e-9)


def test_extrapolation_is_never_above_what_was_seen_and_scales():
    x, y = points()
    found = class_separation(x, y, tail=200)
    assert 0 < found <= least(x, y)
    assert class_separation(10 * x, y, tail=200) == pytest.approx(10 * found, rel=1e-6)


def test_extrapolation_by_the_formula_written_out():
    x, y = points(150)
    distances = np.sort(cdist(x, x)[np.triu(y[:, None] != y)])
    z, k = np.sort(1 / distances), 100
    logs = np.log(z[-k:]) - np.log(z[-k - 1])
    m1, m2 = logs.mean(), (logs**2).mean()
    negative = 1 - 0.5 / (1 - m1**2 / m2)
    gamma = m1 + negative
    endpoint = z[-k - 1] * (1 + m1 * (1 - min(negative, 0)) * (k**gamma - 1) / gamma)
    expected = min(1 / endpoint, distances[0])
    assert class_separation(x, y, tail=100) == pytest.approx(expected, rel=1e-9)


def test_random_pairs_come_near_to_all_of_them():
    x, y = points(2500, 4)
    truth = least(x, y)
    drawn = class_separation(x, y, pairs=300_000)
    assert drawn == class_separation(x, y, pairs=300_000), "drawn with a seed"
    assert truth / 4 < drawn < truth * 2, "a tenth of the pairs, extrapolated"


def test_a_margin_between_the_classes_is_found():
    x, _ = points(3000, 3)
    y = (x[:, 0] > 0).astype(int)
    x[:, 0] += 2.0 * (2 * y - 1)
    for method in ("min", "evt"):
        assert class_separation(x, y, method) == pytest.approx(4, abs=0.35), method


def test_what_cannot_be_separated_is_named():
    x, y = points(50)
    x[1], y[0], y[1] = x[0], 0, 1
    for method in ("min", "evt"):
        with pytest.warns(UnseenWarning, match="equal points have different labels"):
            assert class_separation(x, y, method) == 0
    for bad, message in (
        ((x, np.zeros(50)), "single class"),
        ((x, y[:3]), "labels: has 3"),
        ((x * np.inf, y), "NaN or infinite"),
        ((x, y, "max"), "method 'max'"),
    ):
        with pytest.raises(InputError, match=message):
            class_separation(*bad)
