"""Detectors in scikit-learn's shape of outlier detection, over arrays of features.

It stands here, not among the detectors: their room is imported as a whole to look up a name, and scikit-learn
takes most of a second to import.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from unseen.detection import Detector
from unseen.errors import InputError
from unseen.measures.coverage import threshold_at_coverage
from unseen.networks import Bank
from unseen.registry import detectors


class FamiliarityDetector(OutlierMixin, BaseEstimator):
    """Tells familiar rows of features (N, D) from unfamiliar ones.

    detector       registered name with options, "knn(k=5)". Detectors that read the logits of a classifier,
                   such as energy, cannot be used: for these, see `Predictor.know_familiar`
    contamination  share of the training examples that `predict` calls outliers, in [0, 1); at most that many

    After `fit`: detector_, offset_ (the lowest accepted score), n_features_in_ and, for data frames,
    feature_names_in_.
    """

    def __init__(self, detector: str = "knn", *, contamination: float = 0.05):
        self.detector = detector
        self.contamination = contamination

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from familiar features (N, D); class labels `y` (N,) let a Mahalanobis detector use them.

        Without labels, all are one class. Raises ValueError for what scikit-learn refuses, and `InputError`, a
        ValueError, for a detector that needs logits and for a contamination outside [0, 1).
        """
        if not 0 <= self.contamination < 1:
            raise InputError("contamination", f"is {self.contamination}", "Give a share from 0 to below 1.")
        detector: Detector = detectors.build(self.detector)
        if detector.needs_logits:
            others = [e.name for e in detectors if not getattr(e.target, "needs_logits", False)]
            raise InputError(
                f"detector {self.detector!r}",
                "reads the logits of a classifier, but arrays of features have none",
                f"Choose one of {', '.join(others)}, or fit it on a predictor: Predictor.know_familiar.",
            )
        features: NDArray = validate_data(self, X)
        labels = np.zeros(len(features), dtype=np.int64)
        if y is not None:
            y = column_or_1d(y)
            check_classification_targets(y)
            labels = np.unique(y, return_inverse=True)[1]
        bank = _bank(features)
        bank.labels = torch.from_numpy(labels)
        bank.logits = torch.zeros(len(features), int(labels.max()) + 1)  # tells how many classes there are
        self.detector_ = detector.fit(bank)
        self.offset_ = threshold_at_coverage(self.detector_.score(bank).numpy(), 1 - self.contamination)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Familiarity (N,) of each row; higher is more familiar."""
        check_is_fitted(self)
        return self.detector_.score(_bank(validate_data(self, X, reset=False))).double().numpy()

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Familiarity above the threshold (N,): negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """1 for familiar rows, -1 for outliers (N,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)


def _bank(X: NDArray) -> Bank:
    return Bank(torch.from_numpy(np.array(X, dtype=np.float64)), torch.zeros(len(X), 1))
