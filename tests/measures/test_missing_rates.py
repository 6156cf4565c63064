import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.measures.missing_rates import MissingRateCurve, missing_rate_curve
from unseen.shifts.missing_features import RandomFeatureMissing


def first_value(x):
    return (x["a"][:, 0] > 0).long()


@pytest.fixture
def data():
    labels = torch.arange(2000) % 2
    return {"a": torch.where(labels == 1, 1.0, -1.0).unsqueeze(1).repeat(1, 4)}, labels


def test_accuracy_falls_to_chance(data):
    curve = missing_rate_curve(first_value, *data)
    assert curve.rates.tolist() == [i / 10 for i in range(11)]
    np.testing.assert_allclose(curve.accuracy, 1 - curve.rates / 2, atol=0.03)
    assert (np.diff(curve.accuracy) <= 0).all()  # nested masks
    assert curve.mean == pytest.approx(0.75, abs=0.02) and curve.area == pytest.approx(0.75, abs=0.02)


def test_masks_are_those_of_the_seed(data):
    x, labels = data
    curve = missing_rate_curve(first_value, x, labels, rates=(0.4,), seed=5)
    masked, _ = RandomFeatureMissing(0.4)(x, torch.Generator().manual_seed(5))
    assert curve.accuracy.tolist() == [float((first_value(masked) == labels).double().mean())]


def test_area_is_of_trapezoids():
    curve = MissingRateCurve(np.array([0, 0.5, 0.6]), np.array([1.0, 0.5, 0.1]))
    assert curve.area == pytest.approx((0.5 * 0.75 + 0.1 * 0.3) / 0.6)
    assert curve.mean == pytest.approx(1.6 / 3)


@pytest.mark.parametrize("rates", [(), (0.5, 0.5), (0.6, 0.5)])
def test_rates_must_ascend(data, rates):
    with pytest.raises(InputError, match="Give ascending shares"):
        missing_rate_curve(first_value, *data, rates=rates)
