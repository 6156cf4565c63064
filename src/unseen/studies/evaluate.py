"""Judge a trained network on every domain: all that a cell leaves behind for tables and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.measures.accuracy_estimates import estimate_accuracy
from unseen.measures.calibration import calibration_error, negative_log_likelihood
from unseen.measures.coverage import aurc, threshold_at_coverage
from unseen.networks import Bank, Network
from unseen.registry import detectors
from unseen.training.data import Role, TrainingData

EVERY_DOMAIN = "all"
ROLES: tuple[Role, ...] = ("validation", "unseen")


def evaluate(
    network: Network, data: TrainingData, detector_names: tuple[str, ...], coverage: float = 0.95
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Metrics (records for the store) and per-example outputs of one trained network.

    validation, unseen  accuracy, loss, calibration error; accuracy by class and by group; per domain and
                        over all domains of the role
    unseen              estimates of the accuracy that use no label of the domain (`estimate/...`); AUROC and
                        FPR@95 of each detector against ID validation, and the share it accepts at `coverage`
    """
    banks: dict[str, Bank] = {str(role): data.bank(network, role) for role in ROLES}
    arrays: dict[str, np.ndarray] = {}
    records: list[dict[str, Any]] = []
    for role, bank in banks.items():
        arrays[f"{role}/rows"] = np.asarray(bank.ids)
        arrays[f"{role}/logits"] = bank.logits.numpy()
        for domain, part in _by_domain(bank):
            records += _performance(part, role, domain, data)
    if len(banks["unseen"]):
        scores = _familiarity(network, data, banks, detector_names)
        for name, (validation, unseen) in scores.items():
            arrays[f"validation/score/{name}"], arrays[f"unseen/score/{name}"] = validation, unseen
        records += _unseen_records(banks, scores, coverage)
    return records, arrays


def _by_domain(bank: Bank) -> list[tuple[str, Bank]]:
    if not len(bank):
        return []
    assert bank.domain is not None
    parts = [(bank.domains[i], bank.take(bank.domain == i)) for i in bank.domain.unique().tolist()]
    return [*parts, (EVERY_DOMAIN, bank)]


def _performance(bank: Bank, role: str, domain: str, data: TrainingData) -> list[dict[str, Any]]:
    assert bank.labels is not None
    shift, probabilities = data.split.shift, bank.probabilities
    common = {"role": role, "domain": domain, "n": len(bank)}
    records = [
        {**common, "metric": "accuracy", "value": float(bank.correct.float().mean())},
        {**common, "metric": "loss", "value": negative_log_likelihood(probabilities, bank.labels)},
        {**common, "metric": "calibration error", "value": calibration_error(probabilities, bank.labels)},
    ]
    categories = [("class", shift.classes, bank.labels)]
    if shift.group is not None:
        categories.append(("group", shift.groups, shift.group[bank.ids]))
    for kind, names, values in categories:
        for index in values.unique().tolist():
            inside = values == index
            value = float(bank.correct[inside].float().mean())
            count = {**common, "n": int(inside.sum())}
            records.append(
                {**count, "metric": f"accuracy by {kind}", "category": names[index], "value": value}
            )
    return records


def _familiarity(
    network: Network, data: TrainingData, banks: dict[str, Bank], names: tuple[str, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    train = data.bank(network, "train")
    scores = {}
    for name in names:
        detector = detectors.build(name).fit(train)
        pair = [detector.score(banks[role]) for role in ("validation", "unseen")]
        if not all(torch.isfinite(score).all() for score in pair):
            raise InputError(f"detector {name!r}", "gave scores that are NaN or infinite")
        scores[name] = (pair[0].numpy(), pair[1].numpy())
    return scores


def _unseen_records(
    banks: dict[str, Bank], scores: dict[str, tuple[np.ndarray, np.ndarray]], coverage: float
) -> list[dict[str, Any]]:
    validation, unseen = banks["validation"], banks["unseen"]
    assert unseen.domain is not None
    records: list[dict[str, Any]] = []
    for domain, part in _by_domain(unseen)[:-1]:  # domain by domain: estimates over all at once mean little
        common = {"role": "unseen", "domain": domain, "n": len(part)}
        estimates = estimate_accuracy(validation.probabilities, validation.labels, part.probabilities)
        records += [{**common, "metric": f"estimate/{k}", "value": v} for k, v in estimates.items()]
        inside = np.array([unseen.domains[i] == domain for i in unseen.domain.tolist()])
        for name, (familiar, score) in scores.items():
            separation = ood_metrics(familiar, score[inside], confidence=None)
            accepted = score[inside] >= threshold_at_coverage(familiar, coverage)
            values = {
                "auroc": separation.auroc,
                "fpr95": separation.fpr95,
                "accepted": float(accepted.mean()),
                "aurc": aurc(score[inside], part.correct),
            }
            if accepted.any():
                values["accuracy of accepted"] = float(part.correct.numpy()[accepted].mean())
            records += [{**common, "metric": f"{k}/{name}", "value": v} for k, v in values.items()]
    return records
