import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.measures.feature_spectrum import spectrum_report


def orthogonal(count, size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(count, size)))[0]


def with_values(values, count=20, seed=0):
    """Features whose singular values are `values`."""
    size = len(values)
    return orthogonal(count, size, seed) * np.array(values) @ orthogonal(size, size, seed + 1).T


def test_values_of_a_known_spectrum():
    values = np.array([4.0, 2.0, 1.0, 1.0])
    found = spectrum_report(with_values(values), center=None, normalize=False)
    np.testing.assert_allclose(found.singular_values, values)
    assert found.entropy == pytest.approx(1.75 * np.log(2))  # shares 1/2, 1/4, 1/8, 1/8
    assert found.largest_ratio == pytest.approx(np.log(2))
    assert found.effective_rank == pytest.approx(2**1.75)
    assert found.stable_rank == pytest.approx(22 / 16)


def test_the_two_ends_of_the_scale():
    flat = spectrum_report(with_values([3.0] * 5), center=None, normalize=False)
    assert flat.entropy == pytest.approx(np.log(5)) and flat.largest_ratio == pytest.approx(np.log(5))
    line = spectrum_report(with_values([3.0, 0, 0]), center=None, normalize=False)
    assert line.entropy == pytest.approx(0, abs=1e-9) and line.largest_ratio == pytest.approx(0, abs=1e-9)
    assert line.stable_rank == pytest.approx(1)


def test_centring_takes_off_what_it_says():
    values = np.random.default_rng(0).normal(size=(30, 4)) + 10
    direct = np.linalg.svd(values - values.mean(0), compute_uv=False)
    np.testing.assert_allclose(spectrum_report(values, normalize=False).singular_values, direct)
    each = np.linalg.svd(values - values.mean(1, keepdims=True), compute_uv=False)
    found = spectrum_report(values, center="sample", normalize=False)
    np.testing.assert_allclose(found.singular_values, each, atol=1e-12)
    mean_dominates = spectrum_report(values, center=None, normalize=False)
    assert mean_dominates.largest_ratio < spectrum_report(values, normalize=False).largest_ratio / 3


def test_normalizing_makes_lengths_irrelevant():
    values = np.random.default_rng(0).normal(size=(30, 4))
    scaled = values * np.random.default_rng(1).uniform(0.1, 10, size=(30, 1))
    assert spectrum_report(values).entropy == pytest.approx(spectrum_report(scaled).entropy)
    assert spectrum_report(values, normalize=False).entropy != pytest.approx(
        spectrum_report(scaled, normalize=False).entropy, rel=1e-3
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
def test_bounds_and_rotations(count, size, seed):
    values = np.random.default_rng(seed).normal(size=(count, size))
    found = spectrum_report(torch.from_numpy(values), center=None)
    most = np.log(min(count, size)) + 1e-9
    assert -1e-9 <= found.largest_ratio <= found.entropy + 1e-9 <= most + 1e-9
    assert 1 - 1e-9 <= found.stable_rank <= found.effective_rank**2 + 1e-9
    turned = spectrum_report(values @ orthogonal(size, size, seed), center=None)
    assert turned.entropy == pytest.approx(found.entropy, abs=1e-9)


@pytest.mark.parametrize(
    ("features", "options", "match"),
    [
        (np.ones((1, 3)), {}, "have 1 example"),
        (np.ones((5, 3)), {}, "do not vary"),
        (np.zeros((5, 3)), {"center": None}, "do not vary"),
        (np.array([[1.0, np.nan], [1, 2]]), {}, "NaN"),
        (np.array([[1.0, np.inf], [1, 2]]), {}, "infinite"),
        (np.ones(4), {}, "shape"),
        (np.eye(3), {"center": "column"}, "center: is 'column'"),
    ],
)
def test_what_has_no_spectrum_is_told(features, options, match):
    with pytest.raises(InputError, match=match):
        spectrum_report(features, **options)
