import itertools
import math

import numpy as np
import pytest

from unseen.discovery import clustering_accuracy
from unseen.errors import InputError


def slow(y, predictions, old):
    """The best of all matchings, tried one by one."""
    classes, clusters = sorted(set(y)), sorted(set(predictions))
    padded = classes + [None] * max(0, len(clusters) - len(classes))
    best = (-1,)
    for order in itertools.permutations(padded, len(clusters)):
        match = dict(zip(clusters, order, strict=True))
        correct = np.array([match[p] == t for p, t in zip(predictions, y, strict=True)])
        if correct.sum() > best[0]:
            best = (correct.sum(), correct.mean(), correct[old].mean(), correct[~old].mean())
    return best[1]


@pytest.mark.parametrize("clusters", [3, 4, 6])
def test_equals_the_best_of_all_matchings_for_any_number_of_clusters(clusters):
    random = np.random.default_rng(clusters)
    y, predictions = random.integers(4, size=40), random.integers(clusters, size=40)
    assert clustering_accuracy(y, predictions, y < 2).all == pytest.approx(slow(y, predictions, y < 2))


def test_names_of_clusters_do_not_matter():
    y = np.array([0, 0, 1, 1, 2, 2])
    assert clustering_accuracy(y, np.array([7, 7, 3, 3, 5, 5]), y < 1) == (1.0, 1.0, 1.0)


def test_one_matching_for_all_does_not_inflate_new_classes():
    y = np.array([0] * 10 + [1] * 10)
    predictions = np.zeros(20, dtype=int)  # one cluster for both: it can stand for one class only
    found = clustering_accuracy(y, predictions, y == 0)
    assert found.all == 0.5 and sorted([found.old, found.new]) == [0.0, 1.0]


def test_parts_without_examples_are_nan_and_errors():
    found = clustering_accuracy([0, 1], [0, 1], np.array([True, True]))
    assert found.old == 1 and math.isnan(found.new)
    with pytest.raises(InputError, match="predictions: has 1 entries, but y 2"):
        clustering_accuracy([0, 1], [0], [True, True])
    with pytest.raises(InputError, match="y: is empty"):
        clustering_accuracy([], [], [])
    with pytest.raises(InputError, match="old: has dtype int64"):
        clustering_accuracy([0, 1], [0, 1], [0, 1])
