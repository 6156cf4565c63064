"""What is gained by abstaining: risk against coverage, and the threshold that keeps a given share.

Scores follow the library's convention: higher is more familiar (more confident), accepted first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_correct, as_numbers, same_length


@dataclass(frozen=True)
class RiskCoverage:
    """Risk of the k most familiar examples for k = 1..N; three arrays of shape (N,).

    coverage   k / N
    risk       error rate of those k examples, in [0, 1]
    threshold  score of the k-th
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    threshold: NDArray[np.float64]

    @property
    def area(self) -> float:
        return float(self.risk.mean())


def risk_coverage(scores: Any, correct: Any) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv & Wiener, JMLR 2010) of `scores` (N,) and `correct` (N,), 0/1 or bool.

    Among equal scores the order is arbitrary; the curve is the expectation over all their orders, so it does
    not depend on how the examples happen to be sorted. Raises InputError for empty input, NaN, or lengths
    that differ.
    """
    scores, correct = as_numbers("scores", scores), as_correct("correct", correct)
    same_length("correct", correct, "scores", len(scores))
    order = np.argsort(-scores)
    threshold, errors = scores[order], np.cumsum(1 - correct[order])
    k = np.arange(1, len(scores) + 1)
    ends = np.append(
        np.flatnonzero(threshold[1:] != threshold[:-1]) + 1, len(scores)
    )  # size at each distinct threshold
    expected = np.interp(k, np.append(0, ends), np.append(0, errors[ends - 1]))
    return RiskCoverage(k / len(scores), expected / k, threshold)


def aurc(scores: Any, correct: Any) -> float:
    """Area under the risk-coverage curve, the mean risk over all coverages; 0 is best, in [0, 1].

    To judge rejection of errors and of unfamiliar inputs together (Jaeger et al., ICLR 2023), append the
    unfamiliar examples with `correct` = 0.
    """
    return risk_coverage(scores, correct).area


def excess_aurc(scores: Any, correct: Any) -> float:
    """AURC above that of a perfect ranking of the same errors, E-AURC (Geifman et al., ICLR 2019); >= 0.

    The best AURC is computed exactly for N examples rather than by the paper's limit r + (1 - r) ln(1 - r).
    """
    correct = as_correct("correct", correct)
    return aurc(scores, correct) - aurc(correct, correct)


def threshold_at_coverage(scores: Any, coverage: float) -> float:
    """Highest threshold t such that `score >= t` accepts at least the share `coverage` of `scores` (N,).

    It is the ceil(coverage N)-th highest score, never an interpolation: with ties, or few examples, more
    than `coverage` is accepted, never less. On new examples of the same distribution the expected share
    accepted is at least ceil(coverage N) / (N + 1), a little less than `coverage` when N is small. Raises
    InputError for `coverage` outside (0, 1], empty scores or NaN.
    """
    scores = as_numbers("scores", scores)
    check_coverage(coverage)
    rank = smallest_count(coverage, len(scores))
    return float(np.partition(scores, len(scores) - rank)[len(scores) - rank])


def check_coverage(coverage: float) -> None:
    """Raise InputError unless `coverage` is in (0, 1]."""
    if not 0 < coverage <= 1:
        raise InputError("coverage", f"is {coverage}", "Give a share above 0 and at most 1.")


def smallest_count(share: float, n: int) -> int:
    """Least k >= 1 with k / n >= share, unmoved by rounding (0.07 * 100 is 7.000000000000001)."""
    return max(1, math.ceil(share * n - 1e-9))


@dataclass(frozen=True)
class SelectiveAccuracy:
    """Accuracy on the accepted examples; the share and number accepted; the threshold used."""

    accuracy: float
    coverage: float
    accepted: int
    threshold: float


def accuracy_at_coverage(scores: Any, correct: Any, coverage: float) -> SelectiveAccuracy:
    """Accuracy of the examples that `threshold_at_coverage` accepts; equal scores are accepted together."""
    scores, correct = as_numbers("scores", scores), as_correct("correct", correct)
    same_length("correct", correct, "scores", len(scores))
    threshold = threshold_at_coverage(scores, coverage)
    accepted = scores >= threshold
    return SelectiveAccuracy(
        float(correct[accepted].mean()), float(accepted.mean()), int(accepted.sum()), threshold
    )
