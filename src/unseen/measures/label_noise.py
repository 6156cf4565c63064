"""How many labels are wrong, and which: confident learning, through cleanlab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError, MissingExtra
from unseen.measures.arrays import as_labels, as_probabilities


@dataclass(frozen=True)
class LabelNoise:
    """rate, low, high  estimated share of wrong labels and its bootstrap interval over examples
    joint               (C, C) estimated share of examples that are labelled i and truly are of class j
    suspects            rows whose label is probably wrong, the likeliest first
    quality             (N,) in [0, 1], lower is more suspect
    """

    rate: float
    low: float
    high: float
    joint: NDArray[np.float64]
    suspects: NDArray[np.int64]
    quality: NDArray[np.float64]


def label_noise(
    probabilities: Any, labels: Any, *, resamples: int = 200, confidence: float = 0.95, seed: int = 0
) -> LabelNoise:
    """Estimate label noise from out-of-sample probabilities (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068).

    probabilities  (N, C) of models that were not trained on the example, such as from cross-validation: a network
                   that has seen a wrong label repeats it
    labels         (N,) classes from 0; each class needs an example
    A class that the models confuse with another looks noisy, too: read the suspects before you believe the rate.
    Raises `MissingExtra` without cleanlab.
    """
    try:
        from cleanlab.count import estimate_joint
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise MissingExtra("label noise", "labels") from None
    probabilities = as_probabilities("probabilities", probabilities)
    count, classes = probabilities.shape
    labels = as_labels("labels", labels, count, classes)
    lacking = sorted(set(range(classes)) - set(labels.tolist()))
    if lacking:
        raise InputError(
            "labels",
            f"have no example of class(es) {', '.join(map(str, lacking))}",
            "Leave their columns out.",
        )
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    generator, rates = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = generator.integers(count, size=count)
        if len(np.unique(labels[rows])) == classes:
            rates.append(_rate(estimate_joint(labels[rows], probabilities[rows])))
    joint = estimate_joint(labels, probabilities)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail]) if rates else (np.nan, np.nan)
    suspects = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities)
    return LabelNoise(_rate(joint), float(low), float(high), joint, np.asarray(suspects), quality)


def _rate(joint: NDArray[np.float64]) -> float:
    return float(1 - np.trace(joint))
