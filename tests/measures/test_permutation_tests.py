import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from unseen.errors import InputError
from unseen.measures import permutation_tests
from unseen.measures.permutation_tests import density_difference, energy_distance, mmd, permuted_differences

DRAW = np.random.default_rng(0)
FIRST, SECOND = DRAW.normal(size=(30, 3)), DRAW.normal(size=(20, 3)) + 0.3
TESTS = [mmd, energy_distance, density_difference]


def slow_difference(kernel: np.ndarray, first: list[int]) -> float:
    second = [i for i in range(len(kernel)) if i not in first]
    within = [np.mean([kernel[i, j] for i in rows for j in rows if i != j]) for rows in (first, second)]
    return sum(within) - 2 * np.mean([kernel[i, j] for i in first for j in second])


@pytest.mark.parametrize("columns", [5, 500])
def test_the_matrix_product_is_the_mean_over_pairs_of_every_shuffle(columns, monkeypatch):
    monkeypatch.setattr(permutation_tests, "COLUMNS", columns)
    kernel = DRAW.random((12, 12))
    kernel = torch.from_numpy(kernel + kernel.T)
    fast = permuted_differences(kernel, 5, 40, seed=3)
    members = np.zeros((40, 12), dtype=np.uint8)
    members[:, :5] = 1
    np.random.default_rng(3).permuted(members, axis=1, out=members)
    slow = [slow_difference(kernel.numpy(), list(range(5)))]
    slow += [slow_difference(kernel.numpy(), list(np.flatnonzero(row))) for row in members]
    np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_the_p_value_tends_to_that_of_all_divisions():
    first, second = DRAW.normal(size=(5, 2)), DRAW.normal(size=(4, 2)) + 0.8
    pooled = torch.from_numpy(np.concatenate([first, second]))
    kernel = -torch.cdist(pooled, pooled).numpy()
    every = np.array([slow_difference(kernel, list(rows)) for rows in itertools.combinations(range(9), 5)])
    exact = (every >= every[0] - 1e-9).mean()
    found = energy_distance(first, second, permutations=4000)
    assert found.statistic == pytest.approx(every[0], abs=1e-6)
    assert found.p_value == pytest.approx(exact, abs=0.03)  # four standard errors


def test_mmd_in_closed_form():
    found = mmd([[0.0], [2.0]], [[1.0], [3.0]], bandwidth=1.0, permutations=5)
    k = np.exp(-(np.arange(4) ** 2) / 2)  # kernel at distances 0..3
    assert found.statistic == pytest.approx(k[2] + k[2] - 2 * (3 * k[1] + k[3]) / 4, abs=1e-6)
    assert found.effect == 0  # the unbiased estimate is below zero
    pooled = np.concatenate([FIRST, SECOND])
    median = np.median(np.linalg.norm(pooled[:, None] - pooled, axis=-1)[np.triu_indices(50, 1)])
    by_hand = mmd(FIRST, SECOND, bandwidth=median, permutations=20)
    assert mmd(FIRST, SECOND, permutations=20).statistic == pytest.approx(
        by_hand.statistic, rel=0.01, abs=1e-4
    )


def test_energy_is_scipys_up_to_the_pairs_of_an_example_with_itself():
    first, second = FIRST[:, 0], SECOND[:, 0]
    within = [
        np.abs(a[:, None] - a).sum() * (1 / len(a) ** 2 - 1 / len(a) / (len(a) - 1)) for a in (first, second)
    ]
    expected = stats.energy_distance(first, second) ** 2 + sum(within)  # scipy gives the root
    assert energy_distance(first, second).statistic == pytest.approx(expected, abs=1e-6)


def test_density_difference_is_ridge_regression():
    found = density_difference(FIRST, SECOND, bandwidth=1.0, ridge=0.1, centres=50, permutations=10)
    pooled = np.concatenate([FIRST, SECOND])
    square = ((pooled[:, None] - pooled) ** 2).sum(-1)
    overlap, gaussians = np.exp(-square / 4), np.exp(-square / 2)
    h = gaussians[:, :30].mean(1) - gaussians[:, 30:].mean(1)
    w = np.linalg.solve(overlap + 0.1 * np.eye(50), h)
    assert found.statistic == pytest.approx(2 * w @ h - w @ overlap @ w)


@pytest.mark.parametrize("test", [mmd, energy_distance])
def test_the_estimates_are_unbiased(test):
    draw = np.random.default_rng(1)
    options = {"permutations": 1} | ({"bandwidth": 1.0} if test is mmd else {})
    found = [
        test(draw.normal(size=(8, 2)), draw.normal(size=(12, 2)), **options).statistic for _ in range(400)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    shift = [test(draw.normal(size=8), 1 + draw.normal(size=12), **options).statistic for _ in range(400)]
    if test is mmd:  # E k(x, y) of normals whose difference has mean m and variance 2, at bandwidth 1
        expected = 2 * (1 - np.exp(-1 / 6)) / np.sqrt(3)
    else:  # 2 E|N(1, 2)| - 2 E|N(0, 2)|
        expected = 2 * (stats.foldnorm.mean(1 / np.sqrt(2), scale=np.sqrt(2)) - 2 / np.sqrt(np.pi))
    assert abs(np.mean(shift) - expected) < 4 * np.std(shift) / 20


@pytest.mark.parametrize("test", TESTS)
def test_equal_sets_are_rejected_at_the_level_and_shifted_ones_are(test):
    draw = np.random.default_rng(2)
    p_values = np.array([
        test(draw.normal(size=(25, 3)), draw.normal(size=(35, 3)), permutations=49).p_value for _ in range(120)
    ])  # fmt: skip
    assert 2 <= (p_values <= 0.1).sum() <= 24  # 12 expected
    assert 0.4 < p_values.mean() < 0.62
    found = test(draw.normal(size=(50, 3)), draw.normal(size=(50, 3)) + 0.8)
    assert found.p_value == 0.001 and found.effect > 0.02
    far = test(draw.normal(size=(50, 3)), draw.normal(size=(50, 3)) + 20)
    assert 0.7 < far.effect < 1.42


@pytest.mark.parametrize("test", TESTS)
def test_sets_without_any_difference(test):
    found = test(np.ones((6, 2)), np.ones((5, 2)))
    assert (found.statistic, found.p_value, found.effect) == (0, 1, 0)


@pytest.mark.parametrize("test", TESTS)
def test_order_within_a_set_and_dtype_do_not_matter(test):
    found = test(FIRST, SECOND)
    moved = test(torch.from_numpy(FIRST[::-1].copy()).float() + 5, torch.from_numpy(SECOND).float() + 5)
    assert moved.statistic == pytest.approx(found.statistic, abs=1e-5)
    assert moved.p_value == pytest.approx(found.p_value, abs=0.06)  # other shuffles
    again = test(FIRST, SECOND)
    assert again == found


def test_large_sets_are_thinned_and_many_features_stay_finite():
    found = mmd(DRAW.normal(size=(300, 2)), DRAW.normal(size=(90, 2)), max_examples=100, permutations=9)
    assert found.sizes == (100, 90)
    wide = density_difference(DRAW.normal(size=(40, 2000)), DRAW.normal(size=(40, 2000)) + 0.3)
    assert np.isfinite(wide.statistic) and wide.p_value < 0.05


def test_options_that_make_no_sense():
    for options in ({"permutations": 0}, {"permutations": 1.5}, {"bandwidth": -1.0}, {"max_examples": 1}):
        with pytest.raises(InputError, match=next(iter(options))):
            mmd(FIRST, SECOND, **options)
    with pytest.raises(InputError, match="ridge"):
        density_difference(FIRST, SECOND, ridge=0)
