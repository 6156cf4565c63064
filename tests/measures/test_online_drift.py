import math

import numpy as np
import pytest

from unseen.errors import InputError
from unseen.measures.online_drift import ADWIN, DDM, KSWIN, DriftState, PageHinkley

DRAW = np.random.default_rng(0)
CALM, MOVED = DRAW.binomial(1, 0.2, 1000), DRAW.binomial(1, 0.7, 1000)
DETECTORS = [ADWIN, lambda: PageHinkley(threshold=15), DDM, lambda: KSWIN(alpha=1e-4)]
NAMES = ["adwin", "page-hinkley", "ddm", "kswin"]


def drifts(detector, values):
    return [i for i, value in enumerate(values) if detector.update(value) is DriftState.DRIFT]


@pytest.mark.parametrize("make", DETECTORS, ids=NAMES)
def test_a_change_is_found_soon_and_nothing_before(make):
    found = drifts(make(), np.concatenate([CALM, MOVED]))
    assert found and 1000 <= found[0] < 1100


@pytest.mark.parametrize("make", DETECTORS, ids=NAMES)
def test_reset_forgets_everything(make):
    detector = make()
    first = drifts(detector, np.concatenate([CALM[:300], MOVED[:300]]))
    detector.reset()
    assert drifts(detector, np.concatenate([CALM[:300], MOVED[:300]])) == first


@pytest.mark.parametrize("make", DETECTORS, ids=NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(make, value):
    with pytest.raises(InputError, match="value: is"):
        make().update(value)


# ---- ADWIN ----


def test_adwins_window_has_the_moments_of_the_last_numbers():
    detector, values = ADWIN(), np.concatenate([CALM * 0.3, MOVED]) + DRAW.random(2000) * 0.0
    for count, value in enumerate(values, 1):
        detector.update(value)
        if count % 97 == 0:
            window = values[count - detector.width : count]
            assert detector.mean == pytest.approx(window.mean())
            assert detector.variance == pytest.approx(window.var())
    assert detector.width < 1100
    held = sum(2**level * len(buckets) for level, buckets in enumerate(detector._levels))
    assert held == detector.width and max(map(len, detector._levels)) <= detector.buckets_of_a_size


def test_adwins_cut_is_the_papers():
    """0s then 1s: the update at which the bound is first passed, over cuts between buckets."""
    detector = ADWIN(delta=0.1)
    [at] = drifts(detector, [0.0] * 16 + [1.0] * 20)[:1]
    values = np.array([0.0] * 16 + [1.0] * 20)

    def passes(count, old):
        n0, n1 = old, count - old
        m = 1 / (1 / n0 + 1 / n1)
        log = math.log(2 * math.log(count) / 0.1)
        bound = math.sqrt(2 / m * values[:count].var() * log) + 2 / (3 * m) * log
        return abs(values[:old].mean() - values[old:count].mean()) > bound

    assert any(passes(at + 1, old) for old in range(1, at + 1))
    assert not any(passes(count, old) for count in range(3, at - 1) for old in range(1, count))
    assert detector.width < 36 and detector.mean > 0.5


def test_adwin_finds_both_directions_and_seldom_errs():
    assert drifts(ADWIN(), np.concatenate([MOVED, CALM]))[0] < 1100
    alarms = sum(len(drifts(ADWIN(), np.random.default_rng(seed).random(400))) for seed in range(15))
    assert alarms <= 1


def test_adwin_takes_numbers_from_0_to_1():
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        ADWIN().update(1.5)
    with pytest.raises(InputError, match="delta"):
        ADWIN(0)


# ---- Page-Hinkley, DDM, KSWIN ----


@pytest.mark.parametrize("direction, sign", [("up", 1), ("down", -1)])
def test_page_hinkley_is_its_formula(direction, sign):
    values = np.concatenate([DRAW.normal(size=60), DRAW.normal(size=40) + sign * 2])
    x = sign * values
    means = np.cumsum(x) / np.arange(1, 101)
    m = np.cumsum(x - means - 0.05)
    beyond = m - np.minimum.accumulate(np.minimum(m, 0)) > 20
    beyond[:29] = False
    found = drifts(PageHinkley(tolerance=0.05, threshold=20, direction=direction), values)
    assert found[0] == beyond.argmax() and found[0] >= 60
    away = drifts(PageHinkley(tolerance=0.05, threshold=20, direction=direction), 2 * values[:1] - values)
    assert not away


def test_ddm_is_its_formula_and_warns_first():
    errors = np.concatenate([np.tile([1, 0, 0, 0], 25), np.ones(40, int)])
    states, detector = [], DDM()
    for error in errors:
        states.append(detector.update(error))
    n = np.arange(1, 141)
    p = np.cumsum(errors) / n
    s = np.sqrt(p * (1 - p) / n)
    best = min(range(29, 100), key=lambda i: p[i] + s[i])
    drift = next(i for i in range(100, 140) if p[i] + s[i] >= p[best] + 3 * s[best])
    warning = next(i for i in range(100, 140) if p[i] + s[i] >= p[best] + 2 * s[best])
    assert states.index(DriftState.DRIFT) == drift and states.index(DriftState.WARNING) == warning < drift


def test_one_error_after_many_right_is_no_drift_for_ddm():
    assert not drifts(DDM(), [0] * 200 + [1] + [0] * 50)
    with pytest.raises(InputError, match="1 for an error"):
        DDM().update(0.5)


def test_kswin_sees_a_change_of_spread_alone():
    values = np.concatenate([DRAW.normal(size=400), 8 * DRAW.normal(size=150)])
    found = drifts(KSWIN(alpha=0.001, window=200, recent=60), values)
    assert found and 400 < found[0] < 480
    # recent and drawn ones apart: distance 1 > sqrt(-ln(alpha) / recent)
    assert drifts(KSWIN(alpha=0.005, window=10, recent=5), [0] * 9 + [1]) == []
    assert drifts(KSWIN(alpha=0.02, window=10, recent=5), [0] * 5 + [1] * 5) == [9]


def test_kswin_options():
    with pytest.raises(InputError, match="half the window"):
        KSWIN(window=40, recent=30)
