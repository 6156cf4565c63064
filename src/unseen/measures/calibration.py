"""Do probabilities mean what they say: calibration error, reliability curve, proper scores, temperature."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from unseen.errors import InputError, UnseenWarning
from unseen.measures.arrays import as_labels, as_numbers, as_probabilities


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy in the bins that hold examples, lowest confidence first.

    confidence  mean confidence of a bin, (B,) in [0, 1]
    accuracy    share of correct predictions in it, (B,) in [0, 1]
    count       its number of examples, (B,) int64
    low, high   its edges: a bin holds confidences in (low, high]
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def reliability_curve(
    probabilities: Any, labels: Any, bins: int = 15, *, adaptive: bool = False
) -> ReliabilityCurve:
    """Reliability diagram data of the predicted class (Guo et al., ICML 2017, eqs. 2 and 3).

    `probabilities` (N, C) and `labels` (N,) int. Bins have equal width, or with `adaptive` equal numbers of
    examples (Nguyen & O'Connor, 2015); equal confidences always share a bin. Raises InputError for rows that
    are no probabilities, labels out of range, lengths that differ, or bins < 1.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels("labels", labels, *probabilities.shape)
    if bins < 1:
        raise InputError("bins", f"is {bins}", "Give 1 or more.")
    confidence = np.minimum(probabilities.max(1), 1.0)
    correct = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    if adaptive:
        # an observed confidence as upper edge, so that what equals it stays below
        edges[1:-1] = np.quantile(confidence, edges[1:-1], method="inverted_cdf")
    bin_of = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    return ReliabilityCurve(
        np.bincount(bin_of, confidence, bins)[held] / count[held],
        np.bincount(bin_of, correct, bins)[held] / count[held],
        count[held],
        edges[:-1][held],
        edges[1:][held],
    )


def calibration_error(
    probabilities: Any,
    labels: Any,
    bins: int = 15,
    norm: Literal["l1", "l2", "max"] = "l1",
    adaptive: bool = False,
) -> float:
    """Gap between confidence and accuracy over the bins, in [0, 1]; 0 is perfectly calibrated.

    norm  "l1" expected calibration error, the mean gap weighted by count (Naeini et al., AAAI 2015);
          "l2" root mean squared gap (Kumar et al., NeurIPS 2019); "max" the largest gap (MCE)

    Binned estimates are biased upwards when bins hold few examples: compare models at equal N and bins.
    Arguments and errors as for `reliability_curve`.
    """
    curve = reliability_curve(probabilities, labels, bins, adaptive=adaptive)
    gap = np.abs(curve.confidence - curve.accuracy)
    if norm == "max":
        return float(gap.max())
    if norm == "l1":
        return float(np.average(gap, weights=curve.count))
    if norm == "l2":
        return float(np.sqrt(np.average(gap**2, weights=curve.count)))
    raise InputError("norm", f"is {norm!r}", "Give 'l1', 'l2' or 'max'.")


def brier(probabilities: Any, labels: Any) -> float:
    """Mean squared error of the probability vectors, summed over classes (Brier, 1950); in [0, 2].

    For two classes it is twice the score of the positive class alone.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels("labels", labels, *probabilities.shape)
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean())


def negative_log_likelihood(probabilities: Any, labels: Any) -> float:
    """Mean -ln(probability of the true class), in nats, >= 0.

    Probabilities count as at least 1.2e-38 (the least normal float32), since a float32 softmax rounds to zero
    what is not zero: one such example costs 87.3 nats instead of making the mean infinite.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels("labels", labels, *probabilities.shape)
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny, 1.0)
    return float(-np.log(chosen).mean())


def fit_temperature(logits: Any, labels: Any) -> float:
    """Temperature T > 0 for which softmax(logits / T) has the least NLL on held-out data (Guo et al., 2017).

    `logits` (N, C), `labels` (N,) int. The NLL is convex in 1/T, so its derivative has one root, which is
    bracketed: no start value, no step size. T is sought within a factor 1000 of the logits' spread (their
    standard deviation within an example); where the optimum lies outside (labels perfectly separated: T ->
    0; logits no better than chance: T -> infinity) the bound is returned with an UnseenWarning. Raises
    InputError for NaN or infinite logits and for labels that do not fit.
    """
    logits = as_numbers("logits", logits, 2)
    if not np.isfinite(logits).all():
        raise InputError(
            "logits", "has infinite values", "Give finite logits, not log-probabilities of zero."
        )
    labels = as_labels("labels", labels, *logits.shape)
    spread = float(np.sqrt(logits.var(axis=1).mean()))
    if spread == 0:
        return 1.0  # all classes are equal for every example: temperature changes nothing
    unit = (logits - logits.mean(axis=1, keepdims=True)) / spread
    of_label = unit[np.arange(len(labels)), labels].mean()

    def slope(log_inverse: float) -> float:  # d NLL / d (1/T)
        return float((softmax(np.exp(log_inverse) * unit, axis=1) * unit).sum(1).mean() - of_label)

    low, high = -np.log(1e3), np.log(1e3)
    if slope(low) >= 0 or slope(high) <= 0:
        bound = low if slope(low) >= 0 else high
        reason = (
            "predict the labels no better than chance" if bound == low else "separate the labels perfectly"
        )
        warnings.warn(f"no finite best temperature: the logits {reason}", UnseenWarning, stacklevel=2)
    else:
        bound = brentq(slope, low, high, xtol=1e-10)
    return float(spread * np.exp(-bound))
