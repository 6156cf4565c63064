"""Fairness of predictions: what a sensitive attribute does to them, and how groups fare.

Effects compare an example's predictions under values of the attribute that are imposed, so they need a generator of
counterfactuals: a simulator where there is one, else a model, whose own errors then count for or against the
predictor. Differences between groups need only what was observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_correct, same_length


def total_effect(under_one: Any, under_zero: Any) -> float:
    """TE = E[P(y | do(a = 1))] - E[P(y | do(a = 0))], in [-1, 1]; both (N,) probabilities of the class y.

    Effects of opposite sign cancel: a predictor that harms as many people as it favours has none.
    """
    first, second = _pair("under_one", under_one, "under_zero", under_zero)
    return float((first - second).mean())


def counterfactual_effect(under_one: Any, under_zero: Any, evidence: Any = None) -> float:
    """CE: the absolute total effect within groups of equal evidence, averaged over examples, in [0, 1].

    evidence  (N,) number or name of the group of each example, such as its (x, a) bin; None takes every example
              for itself, which is the largest value that any grouping gives
    """
    first, second = _pair("under_one", under_one, "under_zero", under_zero)
    difference = first - second
    if evidence is None:
        return float(np.abs(difference).mean())
    groups, counts = _groups("evidence", evidence, len(difference))
    return float(np.abs(np.bincount(groups, difference)).sum() / counts.sum())


def effects(
    predict: Callable[[Any], Any],
    generate: Callable[[Any, int], Any],
    x: Any,
    values: tuple[int, int] = (0, 1),
) -> dict[str, float]:
    """Total and counterfactual effect of any predictor under any generator of counterfactuals.

    predict   inputs to probabilities (N,) of the class of interest
    generate  (inputs, value of the attribute) to the inputs had the attribute been that
    """
    zero, one = (predict(generate(x, value)) for value in values)
    return {
        "total effect": total_effect(one, zero),
        "counterfactual effect": counterfactual_effect(one, zero),
    }


def demographic_parity_diff(predictions: Any, group: Any) -> float:
    """Largest difference between groups in the mean of `predictions` (N,), 0/1 or probabilities, in [0, 1]."""
    predictions = as_correct("predictions", predictions)
    return _gap(predictions, *_groups("group", group, len(predictions)))


def equal_opportunity_diff(predictions: Any, labels: Any, group: Any) -> float:
    """Largest difference between groups in the mean prediction of examples with label 1 (Hardt et al. 2016).

    Raises InputError for a group without such examples.
    """
    return _gap_given(1, predictions, labels, group)


def equalized_odds_diff(predictions: Any, labels: Any, group: Any) -> float:
    """The larger of the differences between groups given label 1 and given label 0 (Hardt et al. 2016)."""
    return max(_gap_given(label, predictions, labels, group) for label in (0, 1))


def _gap_given(label: int, predictions: Any, labels: Any, group: Any) -> float:
    predictions, truth = as_correct("predictions", predictions), as_correct("labels", labels)
    same_length("labels", truth, "predictions", len(predictions))
    groups, counts = _groups("group", group, len(predictions))
    inside = truth == label
    own = np.bincount(groups[inside], minlength=len(counts))
    if (own == 0).any():
        raise InputError(
            "group", f"number {int(own.argmin())} has no example of label {label}", "Its rate is not defined."
        )
    return _gap(predictions[inside], groups[inside], own)


def _gap(predictions: NDArray[np.float64], groups: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    if len(counts) < 2:
        raise InputError("group", "has a single value", "Give an attribute that tells examples apart.")
    rates = np.bincount(groups, predictions) / counts
    return float(rates.max() - rates.min())


def _groups(subject: str, values: Any, examples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the groups (N,), and how many examples each has."""
    array = as_array(values)
    same_length(subject, array, "the predictions", examples)
    _, numbers, counts = np.unique(array, return_inverse=True, return_counts=True)
    return numbers, counts


def _pair(one: str, first: Any, other: str, second: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = as_correct(one, first), as_correct(other, second)
    same_length(other, second, one, len(first))
    return first, second
