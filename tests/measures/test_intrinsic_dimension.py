import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from unseen.errors import InputError
from unseen.measures import intrinsic_dimension as module
from unseen.measures.intrinsic_dimension import intrinsic_dimension


def sphere(dimension, count, ambient=20, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, dimension + 1))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ random.normal(size=(dimension + 1, ambient)) * 3


def slowly(x, k):
    distances = np.sort(cdist(x, x), axis=1)
    return 1 / np.mean(np.log(distances[:, k : k + 1]) - np.log(distances[:, 1:k]))


@pytest.mark.parametrize("k", [2, 5, 12])
def test_the_definition_pair_by_pair(k, monkeypatch):
    x = sphere(3, 150)
    expected = slowly(x, k)
    assert intrinsic_dimension(x, k) == pytest.approx(expected, rel=1e-9)
    assert intrinsic_dimension(torch.from_numpy(x).view(150, 4, 5), k) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 1000)
    assert intrinsic_dimension(x, k) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_spheres_have_their_dimension(dimension):
    assert intrinsic_dimension(sphere(dimension, 3000), 10) == pytest.approx(dimension, rel=0.1)


def test_scale_place_and_repetition_change_nothing():
    x = sphere(2, 300)
    expected = intrinsic_dimension(x)
    for other in (1e-3 * x, x + 1e3, np.concatenate([x, x[:50]])):
        assert intrinsic_dimension(other) == pytest.approx(expected, rel=1e-6)
    assert intrinsic_dimension(x.astype(np.float32)) == pytest.approx(expected, rel=1e-3)
    assert intrinsic_dimension(x, method="mle-unbiased") == pytest.approx(expected * 3 / 4)
    sampled = intrinsic_dimension(x, max_samples=100)
    assert sampled != expected and sampled == pytest.approx(expected, rel=0.2)
    assert sampled == intrinsic_dimension(x, max_samples=100)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (np.ones((50, 3)), {}, "1 distinct"),
        (np.arange(10.0).reshape(5, 2), {}, "5 distinct ones. Give 6"),
        (np.full((20, 2), np.nan), {}, "NaN or infinite values in rows 0, 1"),
        (np.arange(20.0), {}, r"shape \(20,\)"),
        (np.random.default_rng(0).random((20, 2)), {"k": 1}, "k: is 1"),
        (np.random.default_rng(0).random((20, 2)), {"method": "mla"}, "method 'mla'"),
    ],
)
def test_what_has_no_dimension_is_named(points, options, message):
    with pytest.raises(InputError, match=message):
        intrinsic_dimension(points, **options)
