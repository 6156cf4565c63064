"""How far domains lie apart: proxy A-distance, MMD, energy distance and optimal transport between data sets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_labels, same_length
from unseen.measures.permutation_tests import energy_distance, mmd
from unseen.measures.two_samples import as_examples, two_sets


def proxy_a_distance(
    first: Any, second: Any, *, classifier: Any = None, folds: int = 5, seed: int = 0
) -> float:
    """2 (1 - 2 e), with e the balanced error of a classifier that tells two sets apart, cross-validated.

    first, second  (N, D) and (M, D)
    classifier     scikit-learn classifier; default logistic regression of standardised features
    In [-2, 2]: 0 for sets that can't be told apart (estimates may fall below), 2 for separate ones.
    Source: Ben-David et al., NeurIPS 2006, section 6; with balanced errors, so that sizes don't matter.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first, second = two_sets(first, second)
    if not 2 <= folds <= min(len(first), len(second)):
        most = min(len(first), len(second))
        raise InputError("folds", f"is {folds}", f"Give 2 to {most}, the examples of the smaller set.")
    rows, is_second = np.concatenate([first, second]), np.arange(len(first) + len(second)) >= len(first)
    model = classifier
    if model is None:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    wrong = cross_val_predict(model, rows, is_second, cv=parts) != is_second
    error = (wrong[is_second].mean() + wrong[~is_second].mean()) / 2
    return float(2 * (1 - 2 * error))


def dataset_distance(
    first: Any,
    first_labels: Any,
    second: Any,
    second_labels: Any,
    *,
    examples: int = 500,
    seed: int = 0,
) -> float:
    """Optimal transport between two labelled data sets, OTDD (Alvarez-Melis & Fusi, NeurIPS 2020, eq. 4).

    first, second  (N, D), (M, D) with labels (N,), (M,); the classes of the two need not correspond
    examples       of each set, drawn with `seed`; fewer when a set has fewer. Both take part with equally many

    A pair of examples is |x - x'|^2 + W2^2(class, class') apart, where a class is the Gaussian of its mean and
    covariance over all its examples. The plan is exact (an assignment); the result is the root of its mean cost.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    first, second = two_sets(first, second)
    names, groups = _grouped("first_labels", first_labels, first)
    others_names, others_groups = _grouped("second_labels", second_labels, second)
    between = np.array([[gaussian_distance(a, b) for b in others_groups] for a in groups])
    generator = np.random.default_rng(seed)
    count = min(examples, len(first), len(second))
    rows, others = (generator.permutation(len(each))[:count] for each in (first, second))
    cost = cdist(first[rows], second[others], "sqeuclidean")
    cost += between[names[rows]][:, others_names[others]]
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def gaussian_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Squared 2-Wasserstein distance between the Gaussians that fit two sets, (N, D) and (M, D).

    |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2). With S = A'A and S' = B'B the square roots of the eigenvalues
    of S S' are the singular values of A B', so no root of a matrix is formed.
    """
    a, b = _root(first), _root(second)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    means = ((first.mean(0) - second.mean(0)) ** 2).sum()
    value = means + (a**2).sum() + (b**2).sum() - 2 * cross
    return max(float(value), 0.0)


def _root(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """A with A'A the covariance of the rows (N, D), and no more than D rows."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows))
    return np.asarray(np.linalg.qr(centred, "r")) if len(rows) > rows.shape[1] else centred


def domain_distances(
    features: Any,
    domain: Any,
    labels: Any = None,
    names: Sequence[str] | None = None,
    *,
    examples: int = 500,
    permutations: int = 199,
    seed: int = 0,
) -> pd.DataFrame:
    """Every pair of domains: proxy A-distance, MMD and energy distance with p-values, and (with labels) OTDD.

    features  (N, D) of all examples; domain (N,) from 0; labels (N,) or None; names of the domains
    examples  of each domain, at most; drawn with `seed`
    Columns: first, second, a_distance, mmd, mmd_p, energy, energy_p, and otdd with labels. Of the tests, the effects
    stand here, which do not grow with the number of examples.
    """
    features = as_examples("features", features)
    domain = as_array(domain)
    same_length("domain", domain, "features", len(features))
    known = np.unique(domain)
    if len(known) < 2:
        raise InputError("domain", "names a single domain", "Distances need two at least.")
    if labels is not None:
        labels = as_array(labels)
        same_length("labels", labels, "features", len(features))
    generator = np.random.default_rng(seed)
    rows = {d: generator.permutation(np.flatnonzero(domain == d))[:examples] for d in known.tolist()}
    table = []
    for a, b in combinations(known.tolist(), 2):
        first, second = features[rows[a]], features[rows[b]]
        by_kernel = mmd(first, second, permutations=permutations, seed=seed)
        by_energy = energy_distance(first, second, permutations=permutations, seed=seed)
        row = {
            "first": a if names is None else names[a],
            "second": b if names is None else names[b],
            "a_distance": proxy_a_distance(first, second, seed=seed),
            "mmd": by_kernel.effect,
            "mmd_p": by_kernel.p_value,
            "energy": by_energy.effect,
            "energy_p": by_energy.p_value,
        }
        if labels is not None:
            row["otdd"] = dataset_distance(
                first, labels[rows[a]], second, labels[rows[b]], examples=examples, seed=seed
            )
        table.append(row)
    return pd.DataFrame(table)


def _grouped(
    subject: str, labels: Any, rows: NDArray[np.float64]
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Classes numbered as they occur, and the rows of each."""
    given = as_array(labels)
    same_length(subject, given, "the examples", len(rows))
    index = np.unique(given, return_inverse=True)[1]
    index = as_labels(subject, index, len(rows), len(rows))
    return index, [rows[index == c] for c in range(index.max() + 1)]
