"""Parity with river's detectors of change, called where it is installed (extra `peers`)."""

import numpy as np
import pytest

from unseen.measures.online_drift import ADWIN, DDM, DriftState, PageHinkley

theirs = pytest.importorskip("river.drift", reason="river is not installed (extra `peers`)")


def first(detector, values):
    return next(i for i, value in enumerate(values) if detector.update(value) is DriftState.DRIFT)


def first_of_theirs(detector, values):
    for index, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            return index
    raise AssertionError("no drift")


@pytest.mark.parametrize("seed", range(5))
def test_page_hinkley_alarms_at_the_same_number(seed):
    draw = np.random.default_rng(seed)
    values = np.concatenate([draw.normal(size=200), draw.normal(1.0, size=200)])
    for direction, sign in (("up", 1), ("down", -1)):
        ours = PageHinkley(tolerance=0.05, threshold=20, direction=direction)
        river = theirs.PageHinkley(delta=0.05, threshold=20, alpha=1.0, mode=direction)
        assert first(ours, sign * values) == first_of_theirs(river, sign * values)


@pytest.mark.parametrize("seed", range(5))
def test_ddm_alarms_at_the_same_number(seed):
    draw = np.random.default_rng(seed)
    errors = np.concatenate([draw.binomial(1, 0.2, 400), draw.binomial(1, 0.6, 400)])
    assert first(DDM(), errors) == first_of_theirs(theirs.binary.DDM(), errors)


@pytest.mark.parametrize("seed", range(5))
def test_adwin_cuts_at_the_same_number_to_the_same_window(seed):
    """Theirs looks for a cut every `clock` numbers; here at each, as the paper does."""
    draw = np.random.default_rng(seed)
    values = np.concatenate([draw.binomial(1, 0.2, 600), draw.binomial(1, 0.7, 300)])
    ours, river = ADWIN(), theirs.ADWIN(clock=1, grace_period=1, min_window_length=1)
    assert first(ours, values) == first_of_theirs(river, values)
    assert ours.width == river.width < 600
