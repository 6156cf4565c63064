"""Detectors on frozen backbones whose pretraining may have seen what is unfamiliar to the task (PT-OOD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.metrics import log_loss
from torch import Tensor, nn

from unseen.detection.base import Detector, require_finite
from unseen.detection.metrics import delong_interval, ood_metrics
from unseen.errors import InputError
from unseen.measures.arrays import as_array
from unseen.measures.linear_probe import LinearProbe
from unseen.measures.separability import Separability, linear_separability
from unseen.networks import Bank
from unseen.networks.feature_cache import encode_in_batches
from unseen.networks.frozen import FrozenBackbone
from unseen.networks.modes import evaluating
from unseen.registry import detectors as registered

Encoder = FrozenBackbone | Callable[[Any], Tensor]
Labelled = tuple[Any, Any]
"""Inputs (N, ...) and classes (N,); None in place of the classes of unfamiliar inputs makes them one class."""

COLUMNS = (
    "auroc",
    "auroc_low",
    "auroc_high",
    "fpr95",
    "separability",
    "separability_ood",
    "id_vs_ood",
    "few_shot",
    "id_accuracy",
    "id_loss",
)
DETECTORS = ("msp", "max-logit", "energy", "knn(k=10)", "mahalanobis", "ssd")


@dataclass(frozen=True)
class OverlapReport:
    """What `pretraining_overlap_report` found.

    table         a row a backbone, detector and unfamiliar set (`ood`): `uses_head`, `auroc` (ties count one half)
                  with DeLong's 95 % bounds, `fpr95` (see `ood_metrics`), `separability`, `separability_ood`,
                  `id_vs_ood` and `few_shot` (see `Separability`), and the probe's `id_accuracy` and `id_loss`
                  (cross-entropy, nats)
    correlations  see `separability_correlations`
    """

    table: pd.DataFrame
    correlations: pd.DataFrame


def pretraining_overlap_report(
    backbones: Mapping[str, Encoder],
    train: Labelled,
    test: Labelled,
    unfamiliar: Mapping[str, Labelled],
    *,
    detectors: Sequence[str] = DETECTORS,
    probe: LinearProbe | None = LinearProbe(),
    shots: int = 5,
    seed: int = 0,
) -> OverlapReport:
    """Every detector on every backbone against every unfamiliar set; features are computed once.

    backbones   name -> `FrozenBackbone` (features kept on disk), or any function of a batch of inputs to features
                (B, D), such as `unseen.networks.backbones.backbone("timm:NAME")` or a module, run in evaluation mode
    train       ID examples for the probe and for what detectors learn
    test        other ID examples, which no pretraining has seen either
    unfamiliar  such as "PT-OOD" (classes of the pretraining; other images) and "non-PT-OOD"
    probe       fitted on the training features of each backbone; None where all detectors read features alone
    Raises InputError for features of zero norm, which have no direction, for a class that is familiar and unfamiliar,
    for scores that read a head where there is no probe, and for what the detectors refuse (k beyond the training set).
    Miyai et al. 2023, arXiv 2310.00847.
    """
    for name, values in (("backbones", backbones), ("unfamiliar", unfamiliar), ("detectors", detectors)):
        if not len(values):
            raise InputError(name, "are empty", "Give one at least.")
    for name, (_, classes) in unfamiliar.items():
        _require_disjoint(name, train[1], classes)
    for spec in detectors:
        if registered.build(spec).needs_logits and probe is None:
            raise InputError(
                f"detector {spec!r}", "reads a head, but there is no probe", "Give probe=LinearProbe()."
            )
    rows: list[dict[str, Any]] = []
    for name, encoder in backbones.items():
        rows += [{"backbone": name, **row} for row in _of_backbone(
            name, encoder, train, test, unfamiliar, detectors, probe, shots, seed
        )]  # fmt: skip
    table = pd.DataFrame(rows, columns=["backbone", "detector", "uses_head", "ood", *COLUMNS])
    return OverlapReport(table, separability_correlations(table))


def separability_correlations(table: pd.DataFrame, by: str = "separability") -> pd.DataFrame:
    """Spearman's rank correlation of separability and AUROC over the backbones, for each detector and `ood`.

    table  of one report, or of several (seeds, tasks) put together
    by     which column stands for separability
    Columns: detector, ood, backbones (rows compared), rank_correlation; NaN for fewer than three rows or constants.
    """
    rows = []
    for (detector, ood), group in table.groupby(["detector", "ood"], sort=False):
        varied = len(group) >= 3 and group[by].nunique() > 1 and group["auroc"].nunique() > 1
        value = float(spearmanr(group[by], group["auroc"]).statistic) if varied else np.nan
        rows.append({"detector": detector, "ood": ood, "backbones": len(group), "rank_correlation": value})
    return pd.DataFrame(rows, columns=["detector", "ood", "backbones", "rank_correlation"])


def encoded(name: str, encoder: Encoder, inputs: Any) -> Tensor:
    """Features (N, D) float32 on the CPU; raises InputError where they are not finite or of zero norm."""
    if isinstance(encoder, FrozenBackbone):
        features = encoder.features(inputs)
    elif isinstance(encoder, nn.Module):
        with evaluating(encoder):
            features = torch.cat(list(encode_in_batches(encoder, inputs)))
    else:
        features = torch.cat(list(encode_in_batches(encoder, inputs)))
    empty = require_finite(features, f"features of backbone {name!r}").norm(dim=1) == 0
    if empty.any():
        raise InputError(
            f"features of backbone {name!r}",
            f"have norm zero in {int(empty.sum())} row(s), first in row {int(empty.nonzero()[0])}",
            "Give features before the last rectification, or leave these inputs out.",
        )
    return features


def _of_backbone(
    name: str,
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    unfamiliar: Mapping[str, Labelled],
    detectors: Sequence[str],
    probe: LinearProbe | None,
    shots: int,
    seed: int,
) -> list[dict[str, Any]]:
    fitted = None if probe is None else clone(probe)
    learn = _bank(encoded(name, encoder, train[0]), train[1], train[1], fitted)
    familiar = _bank(encoded(name, encoder, test[0]), train[1], test[1], fitted)
    others = {ood: encoded(name, encoder, x) for ood, (x, _) in unfamiliar.items()}
    quality = _quality(fitted, familiar, test[1])
    built: dict[str, Detector] = {spec: registered.build(spec).fit(learn) for spec in detectors}
    rows = []
    for ood, features in others.items():
        bank = _bank(features, train[1], None, fitted)
        found = _separability(familiar.features, test[1], features, unfamiliar[ood][1], shots, seed)
        for spec, detector in built.items():
            scores = detector.score(familiar), detector.score(bank)
            metrics, (low, high) = ood_metrics(*scores, confidence=None), delong_interval(*scores)
            rows.append({
                "detector": spec, "uses_head": detector.needs_logits, "ood": ood,
                "auroc": metrics.auroc, "auroc_low": low, "auroc_high": high, "fpr95": metrics.fpr95,
                "separability": found.classes, "separability_ood": found.unfamiliar,
                "id_vs_ood": found.id_vs_ood, "few_shot": found.few_shot, **quality,
            })  # fmt: skip
    return rows


def _bank(features: Tensor, known: Any, labels: Any, probe: LinearProbe | None) -> Bank:
    """Outputs of the probe, which is fitted when it is not yet; without one, logits of zero count the classes alone."""
    classes = np.unique(as_array(known))
    if probe is None:
        numbers = None if labels is None else torch.from_numpy(np.searchsorted(classes, as_array(labels)))
        return Bank(features, torch.zeros(len(features), len(classes)), numbers)
    if not hasattr(probe, "head_"):
        probe.fit(features, labels)
    return probe.bank(features, labels)


def _quality(probe: LinearProbe | None, familiar: Bank, labels: Any) -> dict[str, float]:
    if probe is None:
        return {"id_accuracy": np.nan, "id_loss": np.nan}
    probabilities = probe.predict_proba(familiar.features)
    return {
        "id_accuracy": float((probe.classes_[probabilities.argmax(1)] == as_array(labels)).mean()),
        "id_loss": float(log_loss(as_array(labels), probabilities, labels=probe.classes_)),
    }


def _separability(
    familiar: Tensor, labels: Any, features: Tensor, classes: Any, shots: int, seed: int
) -> Separability:
    names = [f"ID {each}" for each in as_array(labels).tolist()]
    others = ["OOD"] * len(features)
    if classes is not None:
        others = [f"OOD {each}" for each in as_array(classes).tolist()]
    outside = np.repeat([False, True], [len(names), len(others)])
    return linear_separability(
        torch.cat([familiar, features]), names + others, outside, shots=shots, seed=seed
    )


def _require_disjoint(name: str, known: Any, classes: Any) -> None:
    if classes is None:
        return
    both = np.intersect1d(as_array(known), as_array(classes))
    if len(both):
        raise InputError(
            f"class {both[0]}", f"is familiar, and in the unfamiliar set {name!r}", "Leave it out of one."
        )
