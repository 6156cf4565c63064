"""A linear probe: logistic regression on standardised features, as a head that the features themselves enter."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.measures.arrays import as_array, as_numbers, same_length
from unseen.networks import Bank, Network

Regularizer = Literal["l2", "l1", "none"]
STRENGTHS = tuple(float(c) for c in np.logspace(-4, 2, 7))


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression on features (N, D) of a frozen backbone, each scaled to mean 0 and deviation 1.

    regularizer   "l2", "l1" or "none"
    C             inverse strength, as in scikit-learn; None chooses among 1e-4 to 100 by the cross-validated log loss,
                  so that logits of several backbones are on scales that suit their features
    folds         of that cross-validation; fewer where a class has fewer examples
    random_state  of the folds

    After `fit`: classes_, n_features_in_, C_, and head_, a linear layer from the features as they are to a logit for
    each class (two for two classes). Arrays and tensors will do.
    """

    def __init__(
        self,
        *,
        regularizer: Regularizer = "l2",
        C: float | None = None,
        folds: int = 5,
        max_iter: int = 2000,
        random_state: int = 0,
    ):
        self.regularizer = regularizer
        self.C = C
        self.folds = folds
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Raises InputError for a single class, settings out of range, and lengths that differ."""
        features, labels = as_numbers("features", X, 2), as_array(y)
        same_length("labels", labels, "the features", len(features))
        self._check_settings()
        self.classes_, counts = np.unique(labels, return_counts=True)
        if len(self.classes_) < 2:
            raise InputError(
                "labels", f"have one class, {self.classes_[0]}", "A probe needs two to tell apart."
            )
        self.n_features_in_ = features.shape[1]
        model = make_pipeline(StandardScaler(), self._regression(self.C or 1.0))
        self.C_ = self.C
        if self.regularizer == "none":
            self.C_ = np.inf
        elif self.C is None:
            folds = min(self.folds, int(counts.min()))
            if folds < 2:
                rare = self.classes_[counts.argmin()]
                raise InputError(
                    f"class {rare}", "has one example, too few to choose C", "Give C, or more examples."
                )
            search = GridSearchCV(
                model,
                {"logisticregression__C": STRENGTHS},
                scoring="neg_log_loss",
                cv=StratifiedKFold(folds, shuffle=True, random_state=self.random_state),
                refit=False,
            ).fit(features, labels)
            self.C_ = search.best_params_["logisticregression__C"]
            model.set_params(logisticregression__C=self.C_)
        self.head_ = _as_layer(*model.fit(features, labels))
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Logits (N, C), in the order of `classes_`."""
        check_is_fitted(self)
        weight, bias = (p.detach().double().numpy() for p in (self.head_.weight, self.head_.bias))
        return as_numbers("features", X, 2) @ weight.T + bias

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), in the order of `classes_`."""
        return torch.softmax(torch.from_numpy(self.decision_function(X)), 1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class (N,)."""
        return self.classes_[self.decision_function(X).argmax(1)]

    def network(self, featurizer: nn.Module) -> Network:
        """The backbone with this probe as its head."""
        check_is_fitted(self)
        network = Network(featurizer, self.n_features_in_, len(self.classes_))
        network.head.load_state_dict(self.head_.state_dict())
        return network

    def bank(self, features: Tensor, labels: Tensor | None = None) -> Bank:
        """What detectors read: features (N, D), logits, and labels as numbers into `classes_`."""
        check_is_fitted(self)
        numbers = None
        if labels is not None:
            numbers = torch.from_numpy(np.searchsorted(self.classes_, as_array(labels)))
        features = features.float()
        with torch.no_grad():
            return Bank(features, self.head_.to(features.device)(features), numbers, head=self.head_)

    def _check_settings(self) -> None:
        if self.regularizer not in ("l2", "l1", "none"):
            raise InputError("regularizer", f"is {self.regularizer!r}", "Use 'l2', 'l1' or 'none'.")
        if self.C is not None and not self.C > 0:
            raise InputError("C", f"is {self.C}", "Give a positive number, or None.")
        if self.folds < 2:
            raise InputError("folds", f"are {self.folds}", "Give 2 or more.")

    def _regression(self, C: float) -> LogisticRegression:
        if self.regularizer == "none":
            return LogisticRegression(C=np.inf, max_iter=self.max_iter)
        if self.regularizer == "l2":
            return LogisticRegression(C=C, max_iter=self.max_iter)
        renamed = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)
        lasso: dict[str, Any] = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
        return LogisticRegression(
            C=C, solver="saga", max_iter=self.max_iter, random_state=self.random_state, **lasso
        )


def _as_layer(scaler: StandardScaler, regression: LogisticRegression) -> nn.Linear:
    """Both steps as one layer: weights over deviations, biases without the means' part."""
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes, scikit-learn gives the difference of the logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer.requires_grad_(False)
