"""Why a model is worse elsewhere: how much of the drop is label shift, covariate shift and concept shift."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError, UnseenWarning
from unseen.measures.arrays import as_labels, as_numbers, same_length
from unseen.measures.two_samples import two_sets

LEAST_OVERLAP = 0.1
"""Below it, the concept part rests on a few examples."""


@dataclass(frozen=True)
class Part:
    """A part of the drop and its bootstrap interval, in units of the loss; positive: it makes things worse."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ShiftAnatomy:
    """The parts add up to `drop`, the mean loss on the target less that on the source.

    label          the classes have other frequencies
    covariate_out  source inputs that the target does not have are easier (or harder) than those that both have
    concept        the same inputs have other labels, or other noise: what the shared inputs lose
    covariate_in   target inputs that the source does not have are harder than those that both have
    overlap        2 times the integral of p q / (p + q), in [0, 1]: 1 for equal densities of the inputs, 0 for sets
                   that share none
    """

    drop: Part
    label: Part
    covariate_out: Part
    concept: Part
    covariate_in: Part
    overlap: float

    @property
    def covariate(self) -> float:
        """Both covariate parts together."""
        return self.covariate_out.value + self.covariate_in.value


def shift_anatomy(
    source_losses: Any,
    target_losses: Any,
    source_features: Any,
    target_features: Any,
    source_labels: Any = None,
    target_labels: Any = None,
    *,
    classifier: Any = None,
    folds: int = 5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ShiftAnatomy:
    """Split the drop of a model from a source to a target, from losses of single examples.

    source_losses, target_losses      (N,), (M,): 0 and 1 for errors, or any other loss
    source_features, target_features  (N, D), (M, D): what tells inputs apart, such as the model's features
    source_labels, target_labels      (N,), (M,) classes from 0. Without them there is no label part
    classifier                        scikit-learn classifier with `predict_proba` and `sample_weight` in `fit`, which
                                      tells the sets apart; default logistic regression of standardised features
    resamples                         of the bootstrap over examples, which takes the classifier as given

    First, the source's examples are weighted so that its classes have the target's frequencies; what that changes is
    the label part. Then the shared inputs get the density p q / (p + q) of the two sets' densities, by the
    probability that the classifier, cross-fitted, gives to either set: source inputs are weighted by that of the
    target and target inputs by that of the source. From the source to its shared inputs, on these from the source's
    losses to the target's, and from the shared to all target inputs: that are the other three parts (Cai, Namkoong &
    Yadlowsky 2023, arXiv 2303.02011, section 2).

    The label part comes first: where other inputs bring other classes with them, it takes what the covariate parts
    would otherwise have. Leave the labels out to see the other order. Warns when so little is shared that the concept
    part can't be known; raises InputError for sets that don't fit, and for a target class without a source example.
    """
    first, second = as_numbers("source_losses", source_losses), as_numbers("target_losses", target_losses)
    inputs = two_sets(source_features, target_features)
    for name, losses, rows in (
        ("source_losses", first, inputs[0]),
        ("target_losses", second, inputs[1]),
    ):
        same_length(name, losses, "the features of the set", len(rows))
        if not np.isfinite(losses).all():
            raise InputError(name, "has infinite values", "Bound the loss, or count errors.")
    if not 0 < confidence < 1:
        raise InputError("confidence", f"is {confidence}", "Give a number between 0 and 1, such as 0.95.")
    classes = _classes(source_labels, target_labels, len(first), len(second))
    weights = np.ones(len(first)) if classes is None else _label_weights(*classes)
    of_target = _target_probability(*inputs, weights, classifier, folds, seed)
    to_shared = of_target[: len(first)], 1 - of_target[len(first) :]
    overlap = float(np.average(to_shared[0], weights=weights) + to_shared[1].mean())
    if overlap < LEAST_OVERLAP:
        warnings.warn(
            f"shift anatomy: source and target share few inputs (overlap {overlap:.1%}), so how much of the drop is "
            "concept shift cannot be known. Use features in which the sets overlap more.",
            UnseenWarning,
            stacklevel=2,
        )

    def parts(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        relabelled = weights[rows]
        if classes is not None:  # frequencies of classes are estimates, too
            relabelled = _label_weights(classes[0][rows], classes[1][others], strict=False)
        a, b = first[rows], second[others]
        steps = np.array([
            a.mean(),
            np.average(a, weights=relabelled),
            np.average(a, weights=relabelled * to_shared[0][rows]),
            np.average(b, weights=to_shared[1][others]),
            b.mean(),
        ])  # fmt: skip
        return np.concatenate([[steps[-1] - steps[0]], np.diff(steps)])

    estimate = parts(np.arange(len(first)), np.arange(len(second)))
    generator = np.random.default_rng(seed)
    draws = np.stack([
        parts(generator.integers(len(first), size=len(first)), generator.integers(len(second), size=len(second)))
        for _ in range(resamples)
    ])  # fmt: skip
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    drop, label, out, concept, into = (
        Part(*map(float, each)) for each in zip(estimate, low, high, strict=True)
    )
    return ShiftAnatomy(drop, label, out, concept, into, overlap)


def _classes(
    source: Any, target: Any, examples: int, others: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if source is None and target is None:
        return None
    if source is None or target is None:
        raise InputError("labels", "are given for one of the two sets", "Give both, or neither.")
    count = 1 + int(max(as_numbers("source_labels", source).max(), as_numbers("target_labels", target).max()))
    first = as_labels("source_labels", source, examples, count)
    second = as_labels("target_labels", target, others, count)
    lacking = sorted(set(second.tolist()) - set(first.tolist()))
    if lacking:
        raise InputError(
            "target_labels",
            f"have class(es) {', '.join(map(str, lacking))}, of which the source has no example",
            "Leave these examples out: new classes are another kind of shift.",
        )
    return first, second


def _label_weights(
    source: NDArray[np.int64], target: NDArray[np.int64], strict: bool = True
) -> NDArray[np.float64]:
    """Weights (N,) under which the source's classes are as frequent as the target's."""
    size = 1 + int(max(source.max(), target.max()))
    there = np.bincount(source, minlength=size) / len(source)
    wanted = np.bincount(target, minlength=size) / len(target)
    weights = np.divide(wanted, there, out=np.zeros(size), where=there > 0)[source]
    return weights if strict or weights.any() else np.ones(len(source))


def _target_probability(
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
    classifier: Any,
    folds: int,
    seed: int,
) -> NDArray[np.float64]:
    """(N + M,) probability that an example is of the target, by classifiers that did not see it.

    Both sets weigh the same in fitting, so that 1/2 means equal densities.
    """
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    if not 2 <= folds <= min(len(source), len(target)):
        most = min(len(source), len(target))
        raise InputError("folds", f"is {folds}", f"Give 2 to {most}, the examples of the smaller set.")
    rows = StandardScaler().fit_transform(np.concatenate([source, target]))
    is_target = np.arange(len(rows)) >= len(source)
    mass = np.concatenate([weights / weights.sum(), np.full(len(target), 1 / len(target))]) * len(rows) / 2
    model = LogisticRegression(max_iter=1000) if classifier is None else classifier
    found = np.empty(len(rows))
    for fitted, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, is_target):
        fold = clone(model).fit(rows[fitted], is_target[fitted], sample_weight=mass[fitted])
        found[held_out] = fold.predict_proba(rows[held_out])[:, 1]
    return found
