"""How well discovered clusters fit the true classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from unseen.errors import InputError
from unseen.measures.arrays import as_array, same_length


class ClusteringAccuracy(NamedTuple):
    """Shares in [0, 1] of all examples, of those of old classes and of those of new ones; NaN where there are none."""

    all: float
    old: float
    new: float


def clustering_accuracy(y: Any, predictions: Any, old: Any) -> ClusteringAccuracy:
    """Accuracy under the best matching of clusters and classes: one matching for all examples (the "v2" protocol of
    Vaze et al. 2022).

    y            (N,) true classes
    predictions  (N,) clusters; there may be more or fewer than classes
    old          (N,) bool: examples of classes that had labels
    Matching old and new classes apart from each other would inflate the accuracy on new ones.
    """
    y, predictions, old = as_array(y), as_array(predictions), as_array(old)
    same_length("predictions", predictions, "y", len(y))
    same_length("old", old, "y", len(y))
    if not len(y):
        raise InputError("y", "is empty", "Give one example at least.")
    if old.dtype != bool:
        raise InputError("old", f"has dtype {old.dtype}", "Give True for examples of old classes.")
    classes, of_class = np.unique(y, return_inverse=True)
    clusters, of_cluster = np.unique(predictions, return_inverse=True)
    size = max(len(classes), len(clusters))  # padded: some clusters, or classes, match nothing
    together = np.zeros((size, size), dtype=np.int64)
    np.add.at(together, (of_cluster, of_class), 1)
    _, matched = linear_sum_assignment(together, maximize=True)
    correct = matched[of_cluster] == of_class

    def share(of: np.ndarray) -> float:
        return float(correct[of].mean()) if of.any() else float("nan")

    return ClusteringAccuracy(float(correct.mean()), share(old), share(~old))
