"""Learners in scikit-learn's shape: `fit(X, y, domain=...)`, `predict`, `predict_proba`, pipelines, searches."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import objectives
from unseen.shifts import Shift, Split
from unseen.training.fit import fit
from unseen.training.learner import Learner


class UnseenClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of numeric features (N, D) that is trained by a `Learner` on one or several domains.

    objective, update, averaging, network, optimizer, learning_rate, layer_decay, layers, weight_decay, schedule,
    warmup, steps, batch_size, clip, evaluations, patience, keep
                         as in `Learner`; methods are named as there: "irm(penalty_weight=10)"
    validation_fraction  share of each domain and class that is kept from training to measure on, in (0, 1)
    random_state         int, numpy RandomState, or None (draws from NumPy's global generator)

    After `fit`: classes_, n_features_in_, feature_names_in_ (for data frames), domains_ (names of the training
    domains) and predictor_ (to be saved, exported, or given a sense of the familiar).
    """

    def __init__(
        self,
        *,
        objective: str = "erm",
        update: str = "plain",
        averaging: str | None = None,
        network: str = "auto",
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        layer_decay: float = 1.0,
        layers: str = ":",
        weight_decay: float = 0.0,
        schedule: str = "constant",
        warmup: float = 0.0,
        steps: int = 300,
        batch_size: int = 32,
        clip: float | None = None,
        evaluations: int = 10,
        patience: int | None = None,
        keep: str = "best",
        validation_fraction: float = 0.2,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.objective = objective
        self.update = update
        self.averaging = averaging
        self.network = network
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.layer_decay = layer_decay
        self.layers = layers
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.steps = steps
        self.batch_size = batch_size
        self.clip = clip
        self.evaluations = evaluations
        self.patience = patience
        self.keep = keep
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, domain: ArrayLike | None = None) -> Self:
        """Train on features (N, D), labels (N,) and the domain of each example (N,); None means a single domain.

        Raises ValueError for what scikit-learn refuses (NaN, continuous labels, lengths that differ), and
        `InputError`, a ValueError, for an objective that compares domains when none are given.
        """
        features, targets = validate_data(self, X, y)
        targets = column_or_1d(targets, warn=True)
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if domain is None:
            self._require_no_domains()
            domain = np.full(len(targets), "all")
        domain = column_or_1d(domain)
        check_consistent_length(targets, domain)
        self.domains_, domains = np.unique(domain, return_inverse=True)
        shift = Shift(
            name="arrays",
            kind="array",
            inputs=torch.from_numpy(np.array(features, dtype=np.float64)),
            labels=torch.from_numpy(labels),
            domain=torch.from_numpy(domains),
            classes=tuple(map(str, self.classes_)),
            domains=tuple(map(str, self.domains_)),
        )
        seed = self._seed()
        self.predictor_ = fit(self._learner(), self._split(shift, seed), seed=seed)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (N, C) in the order of `classes_`, computed in float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        # in float64, the rounding of one row does not depend on how many others come with it
        network = copy.deepcopy(self.predictor_.network).cpu().double()
        stored = self.predictor_.preprocessing.encode(torch.from_numpy(np.array(X))).double()
        with torch.inference_mode():
            return torch.cat([torch.softmax(network(rows), -1) for rows in stored.split(4096)]).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class (N,) of each row of features (N, D)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def _learner(self) -> Learner:
        names = Learner.__dataclass_fields__.keys() & self.get_params(deep=False).keys()
        learner = Learner(**{name: getattr(self, name) for name in names})
        learner.check()
        return learner

    def _require_no_domains(self) -> None:
        if objectives.build(self.objective).needs_domains:
            raise InputError(
                f"objective {self.objective!r}",
                "compares training domains, but fit got none",
                "Give fit(X, y, domain=...), or choose an objective that needs none, such as erm.",
            )

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _split(self, shift: Shift, seed: int) -> Split:
        """As `Shift.split`, but class by class: few examples must not lose a class to validation."""
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                "validation_fraction", f"is {self.validation_fraction}", "Give a share between 0 and 1."
            )
        generator = torch.Generator().manual_seed(seed)
        train, held = [], []
        for domain in range(len(shift.domains)):
            parts = [
                self._cut(
                    ((shift.domain == domain) & (shift.labels == label)).nonzero().squeeze(1), generator
                )
                for label in range(len(shift.classes))
            ]
            inside = torch.cat([kept for kept, _ in parts])
            measured = torch.cat([cut for _, cut in parts])
            train.append(inside)
            held.append(
                measured if len(measured) else inside
            )  # nothing to spare: measured on what is trained on
        return Split(
            shift,
            torch.cat(train),
            torch.cat(held),
            torch.arange(0),
            shift.domains,
            unseen_domains=(),
            seed=seed,
        )

    def _cut(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = max(min(round(self.validation_fraction * len(rows)), len(rows) - 1), 0)
        return rows[count:].sort().values, rows[:count].sort().values
