"""Judge a trained network on every domain: all that a cell leaves behind for tables and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unseen.detection import Detector
from unseen.errors import InputError
from unseen.measures.calibration import calibration_error
from unseen.networks import Bank, Network
from unseen.registry import detectors
from unseen.studies.unfamiliar import Unfamiliar
from unseen.training.data import Role, TrainingData, network_outputs, weights_hash

EVERY_DOMAIN = "all"
ROLES: tuple[Role, ...] = ("validation", "unseen")


def evaluate(
    network: Network,
    data: TrainingData,
    detector_names: tuple[str, ...],
    unfamiliar: Sequence[Unfamiliar] = (),
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Metrics (records for the store) and per-example outputs of one trained network.

    The metrics, on ID validation and unseen rows, per domain and over all domains of the role: accuracy, loss,
    calibration error; accuracy by class and by group. The outputs are the rows, their logits and, where there
    are unseen rows or unfamiliar data, each detector's score: `Results` computes all else from them, for the
    cells that it shows. Every data set passes the network once, for all detectors together.
    """
    built = {name: detectors.build(name) for name in detector_names}
    observers = list(built.values())
    banks: dict[str, Bank] = {str(role): data.bank(network, role, observers=observers) for role in ROLES}
    arrays: dict[str, np.ndarray] = {}
    records: list[dict[str, Any]] = []
    for role, bank in banks.items():
        arrays[f"{role}/rows"] = np.asarray(bank.ids)
        arrays[f"{role}/logits"] = bank.logits.numpy()
        if len(bank):
            records += _performance(bank, role, data)
    if built and (len(banks["unseen"]) or unfamiliar):
        if not len(banks["unseen"]):
            del banks["unseen"]
        for other in unfamiliar:
            banks[f"unfamiliar/{other.name}"] = _outputs(network, data, other, observers)
        if any(type(detector).fit is not Detector.fit for detector in observers):
            banks["train"] = data.bank(network, "train", observers=observers)
        for name, detector in built.items():
            for role, score in _familiarity(name, detector, network, data, banks).items():
                arrays[f"{role}/score/{name}"] = score
    return records, arrays


def _outputs(network: Network, data: TrainingData, other: Unfamiliar, observers: Sequence[Detector]) -> Bank:
    """Of unfamiliar data, which are encoded once for all networks."""
    key = ("unfamiliar", other.name)
    if key not in data.remembered:
        data.remembered[key] = data.preprocessing.encode(other.inputs)
    bank = network_outputs(network, data.preprocessing, data.remembered[key], observers=observers)
    bank.network_hash = weights_hash(network)
    return bank


def _performance(bank: Bank, role: str, data: TrainingData) -> list[dict[str, Any]]:
    assert bank.labels is not None and bank.domain is not None
    shift, labels, domain = data.split.shift, bank.labels.numpy(), bank.domain.numpy()
    probabilities, correct = bank.probabilities.double().numpy(), bank.correct.numpy()
    # as `negative_log_likelihood`, whose mean it is
    losses = -np.log(probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny))
    categories = [("class", shift.classes, labels)]
    if shift.group is not None:
        categories.append(("group", shift.groups, shift.group[bank.ids].numpy()))
    parts = {bank.domains[index]: np.flatnonzero(domain == index) for index in np.unique(domain)}
    records = []
    for name, rows in {**parts, EVERY_DOMAIN: np.arange(len(labels))}.items():
        common = {"role": role, "domain": name, "n": len(rows)}
        values = {
            "accuracy": correct[rows].mean(),
            "loss": losses[rows].mean(),
            "calibration error": calibration_error(probabilities[rows], labels[rows]),
        }
        records += [{**common, "metric": metric, "value": float(value)} for metric, value in values.items()]
        for kind, names, category in categories:
            counts = np.bincount(category[rows], minlength=len(names))
            right = np.bincount(category[rows], correct[rows], len(names))
            records += [
                {
                    **common,
                    "n": int(counts[index]),
                    "metric": f"accuracy by {kind}",
                    "category": names[index],
                    "value": float(right[index] / counts[index]),
                }
                for index in np.flatnonzero(counts)
            ]
    return records


def _familiarity(
    name: str, detector: Detector, network: Network, data: TrainingData, banks: dict[str, Bank]
) -> dict[str, np.ndarray]:
    """Scores of all but the training rows by one detector. Where no network shapes the features (a linear model),
    what features alone say is the same for every cell of a data set, and computed once."""
    shaped = next(network.featurizer.parameters(), None) is not None
    key = None if shaped or detector.needs_logits else ("familiarity", name, network.spec)
    if key is not None and key in data.remembered:
        return data.remembered[key]
    if "train" in banks:
        detector.fit(banks["train"])
    scores = {role: detector.score(bank) for role, bank in banks.items() if role != "train"}
    if not all(torch.isfinite(score).all() for score in scores.values()):
        raise InputError(f"detector {name!r}", "gave scores that are NaN or infinite")
    found = {role: score.numpy() for role, score in scores.items()}
    if key is not None:
        data.remembered[key] = found
    return found
