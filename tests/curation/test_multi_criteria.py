import math

import numpy as np
import pytest

from unseen.curation import topsis
from unseen.errors import InputError, UnseenWarning


def test_by_hand():
    # columns / length: [3/5, 4/5], [1/sqrt2, 1/sqrt2] is constant and would say nothing; so take unequal ones
    matrix = np.array([[3.0, 1.0], [4.0, 7.0]])
    first, second = np.array([0.6, 0.8]) / 2, np.array([1, 7]) / math.sqrt(50) / 2
    best, worst = (first[1], second[0]), (first[0], second[1])
    expected = []
    for a, b in zip(first, second, strict=True):
        far, near = math.hypot(a - worst[0], b - worst[1]), math.hypot(a - best[0], b - best[1])
        expected.append(far / (far + near))
    np.testing.assert_allclose(topsis(matrix, [True, False]), expected)


@pytest.mark.parametrize("normalize", ["vector", "minmax", "rank"])
def test_the_best_of_all_criteria_is_one_and_the_worst_zero(normalize):
    scores = topsis([[1, -5], [2, 3], [9, 4]], [True, True], normalize=normalize)
    assert scores[0] == 0 and scores[2] == 1 and 0 < scores[1] < 1
    np.testing.assert_allclose(
        topsis([[1, -5], [2, 3], [9, 4]], [False, False], normalize=normalize), 1 - scores
    )


def test_signed_columns_keep_their_signs():
    scores = topsis([[-2, 1], [0.1, 1.1], [2, 1.2]], [True, False], weights=[1, 0])
    np.testing.assert_allclose(scores, [0, 2.1 / 4, 1])


@pytest.mark.parametrize("normalize", ["vector", "minmax", "rank"])
def test_scale_of_a_criterion_does_not_matter(normalize):
    matrix = np.random.default_rng(0).normal(size=(9, 3))
    scores = topsis(matrix, [True, False, True], [1, 2, 3], normalize)
    np.testing.assert_allclose(
        topsis(matrix * [7, 1e-200, 3], [True, False, True], [2, 4, 6], normalize), scores
    )


def test_an_outlier_decides_unless_ranks_are_taken():
    matrix = np.column_stack([[0.0, 1, 2, 1000], [4.0, 1, 3, 2]])
    assert np.ptp(topsis(matrix, [True, True], [1, 0])[:3]) < 0.01
    assert np.ptp(topsis(matrix, [True, True], [1, 0], "rank")[:3]) > 0.5
    ranked = topsis(matrix, [True, True], normalize="rank")
    matrix[3, 0] = 3
    np.testing.assert_allclose(topsis(matrix, [True, True], normalize="rank"), ranked)


def test_a_constant_criterion_is_left_out_with_a_warning():
    with pytest.warns(UnseenWarning, match="criterion 1 is the same"):
        scores = topsis([[1, 7], [2, 7], [3, 7]], [True, True])
    np.testing.assert_allclose(scores, [0, 0.5, 1])
    with pytest.warns(UnseenWarning), pytest.raises(InputError, match="no criterion"):
        topsis([[1, 7], [1, 7]], [True, True])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[1, 2]], [True, True]), r"shape \(1, 2\)"),
        (([1, 2], [True]), "shape"),
        (([[1, 2], [math.nan, 1], [3, math.inf]], [True, True]), "row 1, 2 of the matrix"),
        (([[1, 2], [3, 4]], [True]), "benefit"),
        (([[1, 2], [3, 4]], [True, True], [1, -1]), "weights"),
        (([[1, 2], [3, 4]], [True, True], [0, 0]), "weights"),
        (([[1, 2], [3, 4]], [True, True], None, "log"), "normalize 'log'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        topsis(*arguments)
