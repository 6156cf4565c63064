"""Accuracy on an unseen domain without its labels, from predicted probabilities alone.

None of these can be right under every shift (Garg et al., ICLR 2022, section 3: without assumptions on the
shift the target accuracy is not identifiable). Each function states its assumption; agreement among
estimates that assume different things is more telling than any one of them.

Throughout: `source_*` is labelled held-out data of the training distribution, (N, C) probabilities and (N,)
int labels; `target_probabilities` (M, C) belong to the unseen domain. All estimates are in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from unseen.errors import InputError
from unseen.measures.arrays import as_labels, as_numbers, as_probabilities, same_length
from unseen.measures.class_assignment import assigned_probability


def average_confidence(target_probabilities: Any) -> float:
    """Mean confidence on the target (Hendrycks & Gimpel, ICLR 2017).

    Assumes that the model is calibrated on the target; under shift it is usually too confident.
    """
    return _share(as_probabilities("target_probabilities", target_probabilities).max(1).mean())


def difference_of_confidences(
    source_probabilities: Any, source_labels: Any, target_probabilities: Any
) -> float:
    """Source accuracy minus the fall in mean confidence, DoC (Guillory et al., ICCV 2021).

    The paper's plain form, without its regression over known shifts. Assumes that confidence falls by as much
    as accuracy: the calibration gap is the same on both domains.
    """
    source, labels, target = _checked(source_probabilities, source_labels, target_probabilities)
    accuracy = (source.argmax(1) == labels).mean()
    return _share(accuracy - (source.max(1).mean() - target.max(1).mean()))


def average_thresholded_confidence(
    source_probabilities: Any,
    source_labels: Any,
    target_probabilities: Any,
    score: Literal["max confidence", "negative entropy"] = "max confidence",
) -> float:
    """Share of target examples above the score that as many source examples exceed as are correct: ATC.

    Garg et al., ICLR 2022, eqs. 1 and 2. The threshold t solves share(source score >= t) = source accuracy;
    ties at t count in proportion, so that target = source gives the source accuracy exactly. Assumes that a
    threshold on the score that separates right from wrong (in number) on the source does so on the target.
    The paper calibrates the probabilities on the source first (`fit_temperature`).
    """
    source, labels, target = _checked(source_probabilities, source_labels, target_probabilities)
    if score == "max confidence":
        return _share_above(source.max(1), source.argmax(1) == labels, target.max(1))
    if score == "negative entropy":
        return _share_above(-entr(source).sum(1), source.argmax(1) == labels, -entr(target).sum(1))
    raise InputError("score", f"is {score!r}", "Give 'max confidence' or 'negative entropy'.")


def confidence_optimal_transport(
    source_labels: Any, target_probabilities: Any, *, max_examples: int = 2000, seed: int = 0
) -> float:
    """One minus the Wasserstein distance from target probabilities to one-hot source labels: COT.

    Lu et al., NeurIPS 2023, with the cost ||p - e_y||_inf, which is 1 - p_y. Examples are assigned to
    classes so that each class gets its share of the source labels; the estimate is the mean probability of
    the assigned class. Assumes that the label shares of source and target are the same (no label shift)
    and, as average confidence does, calibration; it is never above average confidence, and falls when
    predictions pile up on few classes.

    The assignment is exact; above `max_examples` it is solved on a random subset drawn with `seed`.
    """
    target = as_probabilities("target_probabilities", target_probabilities)
    examples = len(as_numbers("source_labels", source_labels))
    labels = as_labels("source_labels", source_labels, examples, target.shape[1])
    chosen = _subset(len(target), max_examples, seed)
    return _share(_assigned_probability(target[chosen], labels).mean())


def thresholded_confidence_optimal_transport(
    source_probabilities: Any,
    source_labels: Any,
    target_probabilities: Any,
    *,
    max_examples: int = 2000,
    seed: int = 0,
) -> float:
    """ATC with the transport costs of COT as scores: COTT (Lu et al., NeurIPS 2023).

    Assumes no label shift, and that a threshold on the cost separates right from wrong on both domains;
    needs no calibration. Subsets as for `confidence_optimal_transport`.
    """
    source, labels, target = _checked(source_probabilities, source_labels, target_probabilities)
    chosen = _subset(len(source), max_examples, seed)
    return _share_above(
        _assigned_probability(source[chosen], labels),
        source[chosen].argmax(1) == labels[chosen],
        _assigned_probability(target[_subset(len(target), max_examples, seed)], labels),
    )


def agreement(target_probabilities: Any, second_target_probabilities: Any) -> float:
    """Share of target examples on which two models predict the same class: GDE (Jiang et al., ICLR 2022).

    Assumes that the two come from the same training procedure with independent randomness (seed, order or
    data), whose ensemble is class-wise calibrated on the target. Shared mistakes count as correct.
    """
    first = as_probabilities("target_probabilities", target_probabilities)
    second = as_probabilities("second_target_probabilities", second_target_probabilities)
    same_length("second_target_probabilities", second, "target_probabilities", len(first))
    return float((first.argmax(1) == second.argmax(1)).mean())


def estimate_accuracy(
    source_probabilities: Any,
    source_labels: Any,
    target_probabilities: Any,
    second_target_probabilities: Any = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """All estimates by name; `gde` only when a second model's target probabilities are given."""
    source, labels, target = _checked(source_probabilities, source_labels, target_probabilities)
    estimates = {
        "average confidence": average_confidence(target),
        "doc": difference_of_confidences(source, labels, target),
        "atc max confidence": average_thresholded_confidence(source, labels, target, "max confidence"),
        "atc negative entropy": average_thresholded_confidence(source, labels, target, "negative entropy"),
        "cot": confidence_optimal_transport(labels, target, seed=seed),
        "cott": thresholded_confidence_optimal_transport(source, labels, target, seed=seed),
    }
    if second_target_probabilities is not None:
        estimates["gde"] = agreement(target, second_target_probabilities)
    return estimates


def _checked(
    source_probabilities: Any, source_labels: Any, target_probabilities: Any
) -> tuple[Any, Any, Any]:
    source = as_probabilities("source_probabilities", source_probabilities)
    labels = as_labels("source_labels", source_labels, *source.shape)
    target = as_probabilities("target_probabilities", target_probabilities)
    if target.shape[1] != source.shape[1]:
        raise InputError(
            "target_probabilities",
            f"has {target.shape[1]} classes, but source_probabilities {source.shape[1]}",
            "Give predictions of one model over the same classes.",
        )
    return source, labels, target


def _share_above(
    source_score: NDArray[np.float64], source_correct: NDArray[np.bool_], target_score: NDArray[np.float64]
) -> float:
    """Share of `target_score` above the threshold that as many source scores exceed as are correct."""
    correct = int(source_correct.sum())
    if correct == 0:
        return 0.0
    threshold = np.sort(source_score)[len(source_score) - correct]
    above, at = (source_score > threshold).sum(), (source_score == threshold).sum()
    share_of_ties = (correct - above) / at
    return _share((target_score > threshold).mean() + share_of_ties * (target_score == threshold).mean())


def _assigned_probability(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Probability, (M,), of the class that optimal transport to the shares of `labels` gives each example."""
    examples, classes = probabilities.shape
    quota = np.bincount(labels, minlength=classes) * examples / len(labels)
    seats = np.floor(quota).astype(int)
    largest_remainders = np.argsort(seats - quota, kind="stable")[: examples - seats.sum()]
    seats[largest_remainders] += 1
    return assigned_probability(probabilities, seats)


def _subset(examples: int, most: int, seed: int) -> NDArray[np.int64]:
    if examples <= most:
        return np.arange(examples)
    return np.sort(np.random.default_rng(seed).choice(examples, most, replace=False))


def _share(value: float) -> float:
    return float(np.clip(value, 0.0, 1.0))
