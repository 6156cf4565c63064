"""Do two sets come from one distribution? Tests feature by feature, and by a classifier that tells the sets apart.

Tests by permutation (MMD, energy distance, LSDD) are in `permutation_tests`; `drift` runs any of them on banks.
All assume that examples within each set are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_numbers

Correction = Literal["holm", "bh", "by"]


@dataclass(frozen=True)
class TwoSampleResult:
    """What a two-sample test found.

    statistic         the test's own, see its function
    p_value           in (0, 1]: how often sets of one distribution would differ as much or more
    effect            how far they differ, 0 for equal; unlike the p-value it doesn't grow with the number of
                      examples. Its scale is that of the test
    sizes             examples of the two sets that were used
    feature_effects   (D,) the effect of each feature, for tests that go feature by feature, else None
    feature_p_values  (D,) corrected for the number of features, or None
    """

    test: str
    statistic: float
    p_value: float
    effect: float
    sizes: tuple[int, int]
    feature_effects: NDArray[np.float64] | None = None
    feature_p_values: NDArray[np.float64] | None = None


def kolmogorov_smirnov(first: Any, second: Any, *, correction: Correction = "holm") -> TwoSampleResult:
    """Kolmogorov-Smirnov test of each feature; the whole differs when one does.

    first, second  (N, D) and (M, D), or (N,) and (M,) for one feature
    correction     of the p-values for D features: "holm" (errors of the whole family), "bh" (false discovery rate,
                   independent or positively dependent features) or "by" (under any dependence)
    Statistic and effect are the largest distance between two distribution functions, in [0, 1]; the p-value is the
    least corrected one. Ties make the test conservative. Raises InputError for sets that cannot be compared.
    """
    first, second = two_sets(first, second)
    found = [stats.ks_2samp(a, b) for a, b in zip(first.T, second.T, strict=True)]
    distances = np.array([each.statistic for each in found])
    return _over_features(
        "ks", distances, distances, [each.pvalue for each in found], first, second, correction
    )


def cramer_von_mises(
    first: Any, second: Any, *, correction: Correction = "holm", seed: int = 0
) -> TwoSampleResult:
    """Cramér-von Mises test of each feature (Anderson, Ann. Math. Stat. 1962); the whole differs when one does.

    Arguments and errors as for `kolmogorov_smirnov`. Statistic: the largest T. Effect: the largest root mean square
    distance between two distribution functions, in [0, 0.58]. Equal values are ordered at random, with `seed`: the
    distribution of T under the null is that of values without ties, and features of a ReLU have many.
    """
    first, second = two_sets(first, second)
    generator = np.random.default_rng(seed)
    found, effects = [], []
    for a, b in zip(first.T, second.T, strict=True):
        pooled = np.concatenate([a, b])
        ranks = np.empty(len(pooled))
        ranks[np.lexsort((generator.random(len(pooled)), pooled))] = np.arange(len(pooled))
        found.append(stats.cramervonmises_2samp(ranks[: len(a)], ranks[len(a) :]))
        gaps = _distribution(a, pooled) - _distribution(b, pooled)
        effects.append(np.sqrt((gaps**2).mean()))
    statistics = np.array([each.statistic for each in found])
    p_values = [each.pvalue for each in found]
    return _over_features("cvm", statistics, np.array(effects), p_values, first, second, correction)


def classifier_test(
    first: Any, second: Any, *, classifier: Any = None, folds: int = 2, seed: int = 0
) -> TwoSampleResult:
    """Classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017), cross-fitted.

    classifier  scikit-learn classifier with `decision_function` or `predict_proba`; default logistic regression of
                standardised features, which sees differences in means
    folds       each example is scored by a classifier that was fitted without its fold

    Statistic: the mean area under the ROC curve of the held-out folds; effect: 2 * area - 1, 0 for sets that cannot
    be told apart, 1 for separated ones, and around 0 it may be negative. Each fold gives a Mann-Whitney p-value;
    the p-value is twice their mean (at most 1), which is valid however they depend on each other (Vovk & Wang,
    Biometrika 2020). They do: pooling the folds as if they were independent rejects equal sets too often.
    """
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first, second = two_sets(first, second)
    if not 2 <= folds <= min(len(first), len(second)):
        most = min(len(first), len(second))
        raise InputError("folds", f"is {folds}", f"Give 2 to {most}, the examples of the smaller set.")
    model = classifier if classifier is not None else make_pipeline(StandardScaler(), LogisticRegression())
    rows = np.concatenate([first, second])
    is_second = np.arange(len(rows)) >= len(first)
    areas, p_values = [], []
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, is_second)
    for fitted, held_out in parts:
        fold = clone(model).fit(rows[fitted], is_second[fitted])
        if hasattr(fold, "decision_function"):
            scores = fold.decision_function(rows[held_out])
        else:
            scores = fold.predict_proba(rows[held_out])[:, 1]
        of_second = is_second[held_out]
        u, p_value = stats.mannwhitneyu(scores[of_second], scores[~of_second], alternative="greater")
        areas.append(u / (of_second.sum() * (~of_second).sum()))
        p_values.append(p_value)
    area = float(np.mean(areas))
    p_value = min(1.0, 2 * float(np.mean(p_values)))
    return TwoSampleResult("classifier", area, p_value, 2 * area - 1, (len(first), len(second)))


def two_sets(first: Any, second: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets as (N, D) and (M, D) float64, N and M from 2; a vector counts as one feature."""
    first, second = as_examples("first", first), as_examples("second", second)
    if first.shape[1] != second.shape[1]:
        problem = f"has {second.shape[1]} features, but first {first.shape[1]}"
        raise InputError("second", problem, "Give the same features of both.")
    return first, second


def as_examples(subject: str, values: Any) -> NDArray[np.float64]:
    """(N, D) finite float64, N from 2; a vector counts as one feature."""
    array = as_numbers(subject, values, 2 if as_array(values).ndim > 1 else 1)
    array = array[:, None] if array.ndim == 1 else array
    if len(array) < 2:
        raise InputError(subject, "has one example", "A test needs two at least, better fifty.")
    if not np.isfinite(array).all():
        raise InputError(subject, "has infinite values", "Leave these examples out, or clip them.")
    return array


def _over_features(
    test: str,
    statistics: NDArray[np.float64],
    effects: NDArray[np.float64],
    p_values: Any,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    correction: Correction,
) -> TwoSampleResult:
    corrected = _corrected(np.asarray(p_values, dtype=float), correction)
    # an asymptotic p-value can underflow to 0, which no number of examples can show
    corrected = corrected.clip(min=np.finfo(float).tiny)
    return TwoSampleResult(
        test,
        float(statistics.max()),
        float(corrected.min()),
        float(effects.max()),
        (len(first), len(second)),
        effects,
        corrected,
    )


def _corrected(p_values: NDArray[np.float64], correction: Correction) -> NDArray[np.float64]:
    if correction in ("bh", "by"):
        return stats.false_discovery_control(p_values, method=correction)
    if correction != "holm":
        raise InputError("correction", f"is {correction!r}", "Give 'holm', 'bh' or 'by'.")
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(stepped).clip(max=1)
    return corrected


def _distribution(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.searchsorted(np.sort(values), at, side="right") / len(values)
