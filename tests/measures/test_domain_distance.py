import numpy as np
import pytest
from scipy.linalg import sqrtm

from unseen.errors import InputError
from unseen.measures.domain_distance import (
    dataset_distance,
    domain_distances,
    gaussian_distance,
    proxy_a_distance,
)

random = np.random.default_rng(0)


def test_the_a_distance_of_equal_and_separate_sets():
    a = random.normal(size=(400, 3))
    assert abs(proxy_a_distance(a, random.normal(size=(400, 3)))) < 0.3
    assert proxy_a_distance(a, a + 20) == 2
    # means 2 apart with unit variance: the best linear rule errs Phi(-1) = 0.159 of the time, whatever the sizes
    near = proxy_a_distance(a[:100], random.normal([2, 0, 0], size=(4000, 3)))
    assert near == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.15)


@pytest.mark.parametrize("sizes", [(50, 40), (3, 60), (4, 5)])
def test_the_distance_of_gaussians_against_matrix_roots(sizes):
    a, b = (
        random.normal(size=(sizes[0], 6)),
        random.normal(size=(sizes[1], 6)) @ random.normal(size=(6, 6)) + 1,
    )
    one, two = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    root = sqrtm(one)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * sqrtm(root @ two @ root).real)
    assert gaussian_distance(a, b) == pytest.approx(expected.real, rel=1e-4)
    assert gaussian_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_transport_between_labelled_sets():
    x = random.normal(size=(60, 2))
    y = np.arange(60) % 2
    x[y == 1] += 6
    assert dataset_distance(x, y, x, y) == pytest.approx(0, abs=1e-6)
    assert dataset_distance(x, y, x, 1 - y) == pytest.approx(0, abs=1e-6), (
        "classes need not correspond by number"
    )
    # moving all by a vector v costs |v|^2 for the examples and as much for their classes
    moved = dataset_distance(x, y, x + np.array([3, 4]), y)
    assert moved == pytest.approx(np.sqrt(2 * 25), rel=1e-6)
    # the same inputs under labels that mean nothing are far: classes have other distributions
    assert dataset_distance(x, y, x, random.permutation(y)) > 2


def test_the_table_of_domains():
    domain = np.repeat([0, 1, 2], 150)
    x = random.normal(size=(450, 2)) + np.where(domain == 2, 3, 0)[:, None]
    table = domain_distances(x, domain, np.arange(450) % 2, names=["a", "b", "c"])
    assert table[["first", "second"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    same, far = table.iloc[0], table.iloc[1]
    assert same.mmd_p > 0.01 and same.energy_p > 0.01 and far.mmd_p <= 0.005 and far.energy_p <= 0.005
    for column in ("a_distance", "mmd", "energy", "otdd"):
        assert far[column] > same[column] + 0.2, column
    assert "otdd" not in domain_distances(x, domain, permutations=19).columns
    with pytest.raises(InputError, match="single domain"):
        domain_distances(x, np.zeros(450))
    with pytest.raises(InputError, match="domain: has 3 entries"):
        domain_distances(x, np.arange(3))
    with pytest.raises(InputError, match="folds"):
        proxy_a_distance(x[:3], x[:3])
