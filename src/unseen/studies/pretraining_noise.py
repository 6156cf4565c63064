"""What label noise in pretraining does downstream: encoders of several noise rates, the same tasks for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from unseen.errors import InputError
from unseen.measures.feature_spectrum import spectrum_report

Encoder = Callable[[Any], Any]
Labelled = tuple[Any, Any]
"""Inputs (N, ...) and labels (N,)."""


@dataclass(frozen=True)
class TransferTask:
    """A labelled downstream task.

    train    what a tuner is fitted on
    test     unseen examples of the same distribution (ID)
    shifted  name -> examples of another distribution (OOD), over the same classes
    strong   second view (N, ...) of the training inputs for tuners that compare views, or None
    """

    train: Labelled
    test: Labelled
    shifted: Mapping[str, Labelled] = field(default_factory=dict)
    strong: Any = None


def pretraining_noise_study(
    pretrain: Callable[[float], Encoder],
    rates: Sequence[float],
    tasks: Mapping[str, TransferTask],
    tuners: Mapping[str, Any],
) -> pd.DataFrame:
    """Pretrain at each noise rate, freeze, tune on each task, judge inside and outside its distribution.

    pretrain  noise rate in [0, 1] -> encoder: inputs to features (N, D), arrays or tensors on the CPU
    tuners    name -> scikit-learn classifier of features, or a search over one; cloned for each fit. Those with
              a parameter `strong` of `fit` (`FeatureTuner`) get the task's second view, if it has one

    Returns a tidy table: rate, task, tuner, split ("id" or a name of `shifted`), metric, value. Metrics are
    accuracy, and entropy (SVE) and largest_ratio (LSVR) of the frozen test features (tuner "frozen") and of the
    tuned ones, where a tuner transforms. Raises InputError for no rates, tasks or tuners.
    """
    for name, values in (("rates", rates), ("tasks", tasks), ("tuners", tuners)):
        if not len(values):
            raise InputError(name, "are empty", "Give one at least.")
    rows: list[dict[str, Any]] = []
    for rate in rates:
        encoder = pretrain(rate)
        for task_name, task in tasks.items():
            common = {"rate": rate, "task": task_name}
            rows += [{**common, **row} for row in _of_task(encoder, task, tuners)]
    return pd.DataFrame(rows, columns=["rate", "task", "tuner", "split", "metric", "value"])


def _of_task(encoder: Encoder, task: TransferTask, tuners: Mapping[str, Any]) -> list[dict[str, Any]]:
    train, labels = encoder(task.train[0]), task.train[1]
    judged = {"id": task.test, **task.shifted}
    features = {split: encoder(x) for split, (x, _) in judged.items()}
    strong = None if task.strong is None else encoder(task.strong)
    rows = _spectrum("frozen", features["id"])
    for name, tuner in tuners.items():
        fitted = clone(tuner)
        options = {} if strong is None or not _takes_views(tuner) else {"strong": strong}
        fitted.fit(train, labels, **options)
        for split, (_, truth) in judged.items():
            accuracy = float(fitted.score(features[split], truth))
            rows.append({"tuner": name, "split": split, "metric": "accuracy", "value": accuracy})
        if hasattr(fitted, "transform"):
            rows += _spectrum(name, fitted.transform(features["id"]))
    return rows


def _takes_views(tuner: Any) -> bool:
    return has_fit_parameter(getattr(tuner, "estimator", tuner), "strong")


def _spectrum(tuner: str, features: Any) -> list[dict[str, Any]]:
    report = spectrum_report(features)
    return [
        {"tuner": tuner, "split": "id", "metric": metric, "value": getattr(report, metric)}
        for metric in ("entropy", "largest_ratio")
    ]
