"""How well a hyperplane tells classes apart in a feature space, those that a task leaves out among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_numbers, same_length


@dataclass(frozen=True)
class Separability:
    """Accuracies of logistic regressions on held-out examples, in [0, 1], every class counting alike.

    classes      all K classes at once, cross-validated; 1 / K is chance
    unfamiliar   the same on examples of the unfamiliar classes alone; NaN without groups
    id_vs_ood    familiar against unfamiliar, cross-validated; NaN without groups
    few_shot     all K classes, learned from a few examples of each, mean of several draws
    """

    classes: float
    unfamiliar: float
    id_vs_ood: float
    few_shot: float


def linear_separability(
    features: Any,
    labels: Any,
    groups: Any = None,
    *,
    C: float = 1.0,
    folds: int = 5,
    shots: int = 5,
    draws: int = 5,
    seed: int = 0,
) -> Separability:
    """Linear separability of classes in features (N, D), each standardised on the examples that are learned from.

    labels  (N,) classes, of any type
    groups  (N,) booleans, True for examples of unfamiliar (OOD) classes, or None
    C       inverse strength of the L2 penalty
    shots   training examples a class of the few-shot variant, whose others are tested on
    Never measured on what was learned from, where even random features look separable. Raises InputError for a single
    class, a class in both groups, a single group, and too few examples for the folds or shots.
    Miyai et al. 2023, arXiv 2310.00847 (linear separability of classes seen in pretraining).
    """
    x, y = as_numbers("features", features, 2), as_array(labels)
    same_length("labels", y, "the features", len(x))
    classes, numbers, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise InputError("labels", f"have one class, {classes[0]}", "Give two classes at least.")
    if folds < 2 or shots < 1 or draws < 1 or not C > 0:
        raise InputError(
            "folds, shots, draws or C",
            f"are {folds}, {shots}, {draws} and {C}",
            "Give at least 2 folds, a shot, a draw, and a positive C.",
        )
    fewest = max(folds, shots + 1)
    if counts.min() < fewest:
        raise InputError(
            f"class {classes[counts.argmin()]}",
            f"has {counts.min()} example(s)",
            f"Give at least {fewest} for {folds} folds and {shots} shots.",
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    predicted = cross_val_predict(
        model, x, numbers, cv=StratifiedKFold(folds, shuffle=True, random_state=seed)
    )
    unfamiliar = id_vs_ood = np.nan
    if groups is not None:
        outside = _outside(groups, numbers, classes)
        unfamiliar = _mean_recall(numbers[outside], predicted[outside])
        # folds that know the classes: every one of them is in the training part of each
        by_class = StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, numbers)
        balanced = make_pipeline(
            StandardScaler(), LogisticRegression(C=C, class_weight="balanced", max_iter=2000)
        )
        told = cross_val_predict(balanced, x, outside, cv=list(by_class))
        id_vs_ood = _mean_recall(outside, told)
    generator = np.random.default_rng(seed)
    few = [_few_shot(model, x, numbers, shots, generator) for _ in range(draws)]
    return Separability(_mean_recall(numbers, predicted), unfamiliar, id_vs_ood, float(np.mean(few)))


def _outside(groups: Any, numbers: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.bool_]:
    outside = as_array(groups).astype(bool)
    same_length("groups", outside, "the features", len(numbers))
    both = np.intersect1d(numbers[outside], numbers[~outside])
    if len(both):
        raise InputError(
            f"class {classes[both[0]]}",
            "is among the familiar and the unfamiliar examples",
            "A class must be in one group.",
        )
    if outside.all() or not outside.any():
        raise InputError("groups", "have one value", "Give familiar and unfamiliar examples, or None.")
    return outside


def _few_shot(
    model: Any, x: NDArray[np.float64], numbers: NDArray[Any], shots: int, generator: np.random.Generator
) -> float:
    order = generator.permutation(len(numbers))
    chosen = np.concatenate([order[numbers[order] == each][:shots] for each in np.unique(numbers)])
    rest = np.setdiff1d(order, chosen)
    return _mean_recall(numbers[rest], model.fit(x[chosen], numbers[chosen]).predict(x[rest]))


def _mean_recall(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Accuracy, the classes of `truth` counting alike; predictions of other classes are wrong."""
    return float(np.mean([np.mean(predicted[truth == each] == each) for each in np.unique(truth)]))
