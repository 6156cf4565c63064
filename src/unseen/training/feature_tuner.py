"""NMTune in scikit-learn's shape: from frozen features, even of a model behind an API, to a classifier."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.networks.residual_tuner import Normalization, residual_tuner
from unseen.objectives.nmtune import NMTune
from unseen.shifts import Batch
from unseen.training.system import seeded


class FeatureTuner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):
    """A residual perceptron and a linear head on features (N, D), trained with NMTune's regularizers.

    hidden_ratio    hidden units for each of the D dimensions; 0 leaves the perceptron out (a linear probe, for
                    which all regularizers must be 0)
    residual_scale  what the learned scale of the perceptron's output starts from
    normalization   of the hidden layer: "batch", "layer" or "none"
    consistency, covariance, singular, top_k
                    as in `unseen.objectives.nmtune.NMTune`
    epochs, batch_size, learning_rate, weight_decay, warmup
                    of AdamW, with a cosine schedule after a share `warmup` of the steps; a linear probe wants
                    a learning rate about ten times that of the perceptron
    random_state    int, numpy RandomState, or None (draws from NumPy's global generator)
    device          where to train, such as "cuda"

    After `fit`: classes_, n_features_in_, feature_names_in_ (for data frames), network_ and loss_curve_ (the
    mean loss of each epoch). Defaults are those of the paper's published code, but for its warm-up, which is off.
    """

    def __init__(
        self,
        *,
        hidden_ratio: float = 4.0,
        residual_scale: float = 1.0,
        normalization: Normalization = "batch",
        consistency: float = 1.0,
        covariance: float = 0.04,
        singular: float = 1e-3,
        top_k: int = 5,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "cpu",
    ):
        self.hidden_ratio = hidden_ratio
        self.residual_scale = residual_scale
        self.normalization = normalization
        self.consistency = consistency
        self.covariance = covariance
        self.singular = singular
        self.top_k = top_k
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike, strong: ArrayLike | None = None) -> Self:
        """Train on features (N, D), labels (N,) and, if there is one, a second view `strong` (N, D) of each example.

        Raises ValueError for what scikit-learn refuses (NaN, continuous labels, a single example), and
        `InputError`, a ValueError, for settings out of range and a second view of another shape. Warns where top_k
        leaves no singular value that is not dominant.
        """
        self._check_settings()
        features, targets = validate_data(self, X, y, ensure_min_samples=2, dtype=np.float64)
        targets = column_or_1d(targets, warn=True)
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        views = {"weak": features}
        if strong is not None:
            views["strong"] = check_array(strong, dtype=np.float64)
            if views["strong"].shape != features.shape:
                raise InputError(
                    "strong",
                    f"has shape {views['strong'].shape}, but X {features.shape}",
                    "Give a second view of each example of X.",
                )
        self._check_top_k(len(features), features.shape[1], len(views))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(seed):
            self.network_ = self._network(features.shape[1], len(self.classes_))
        tensors = {name: torch.from_numpy(np.array(view)).float() for name, view in views.items()}
        self._train(tensors, torch.from_numpy(labels), torch.Generator().manual_seed(seed))
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Tuned features (N, D) of features (N, D)."""
        return self._outputs(X)[0].numpy()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (N, C) in the order of `classes_`, computed in float64."""
        return torch.softmax(self._outputs(X)[1], -1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class (N,) of each row of features (N, D)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _check_settings(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2)):  # one example has no batch statistics
            if getattr(self, name) < least:
                raise InputError(name, f"is {getattr(self, name)}", f"Give a whole number from {least}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError("learning_rate", f"is {self.learning_rate}", "Give a positive number.")
        if not 0 <= self.warmup < 1:
            raise InputError("warmup", f"is {self.warmup}", "Give the share of steps, from 0 to below 1.")
        if self.hidden_ratio < 0:
            raise InputError("hidden_ratio", f"is {self.hidden_ratio}", "Give a number from 0.")
        if self.hidden_ratio == 0 and (self.consistency or self.covariance or self.singular):
            raise InputError(
                "hidden_ratio",
                "is 0, but regularizers act on what the perceptron changes",
                "Set consistency, covariance and singular to 0 for a linear probe.",
            )

    def _check_top_k(self, examples: int, size: int, views: int) -> None:
        most = min(views * min(examples, self.batch_size), size)
        if self.singular and self.top_k >= most:
            warnings.warn(
                f"FeatureTuner: top_k is {self.top_k}, but a batch has {most} singular values: all of them are "
                "dominant, and the term `singular` does nothing. Lower top_k.",
                UnseenWarning,
                stacklevel=3,
            )

    def _network(self, size: int, classes: int) -> Any:
        network = residual_tuner(
            input_shape=(size,),
            classes=classes,
            hidden_ratio=self.hidden_ratio,
            scale=self.residual_scale,
            normalization=self.normalization,
        )
        if self.hidden_ratio == 0:
            network.featurizer = torch.nn.Identity()
        return network

    def _train(self, views: dict[str, Tensor], labels: Tensor, generator: torch.Generator) -> None:
        network = self.network_.to(self.device).train()
        objective = NMTune(self.consistency, self.covariance, self.singular, self.top_k)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        views, labels = {k: v.to(self.device) for k, v in views.items()}, labels.to(self.device)
        # equal parts, so that no batch of a single example is left over
        parts = max(1, math.floor(len(labels) / self.batch_size))
        steps, step, self.loss_curve_ = self.epochs * parts, 0, []
        for _ in range(self.epochs):
            order, total = torch.randperm(len(labels), generator=generator).to(self.device), 0.0
            for rows in order.tensor_split(parts):
                for group in optimizer.param_groups:
                    group["lr"] = self._rate(step, steps)
                x = {name: view[rows] for name, view in views.items()}
                domain = torch.zeros_like(rows)
                batch = Batch(x if len(x) > 1 else x["weak"], labels[rows], domain, domains=1, step=step)
                optimizer.zero_grad(set_to_none=True)
                loss = objective(network, batch).total
                loss.backward()
                optimizer.step()
                total, step = total + float(loss.detach()) * len(rows), step + 1
            self.loss_curve_.append(total / len(labels))
            if not math.isfinite(total):
                raise TrainingDiverged(
                    f"FeatureTuner: the loss became {total} in epoch {len(self.loss_curve_)}. Lower the learning "
                    f"rate ({self.learning_rate:g}) or a regularizer, or scale the features."
                )
        network.cpu().eval()

    def _rate(self, step: int, steps: int) -> float:
        rising = self.warmup * steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2

    def _outputs(self, X: ArrayLike) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        # in float64, the rounding of one row does not depend on how many others come with it
        network = copy.deepcopy(self.network_).double()
        with torch.inference_mode():
            features = torch.cat(
                [network.featurizer(rows) for rows in torch.from_numpy(np.array(X)).split(4096)]
            )
            return features, network.head(features)
