"""Judge a trained network on every domain: all that a cell leaves behind for tables and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.detection import Detector
from unseen.errors import InputError
from unseen.measures.calibration import calibration_error
from unseen.networks import Bank, Network
from unseen.registry import detectors
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import take
from unseen.studies.banks import banks_of
from unseen.studies.plan import tunable
from unseen.studies.tuned_detectors import candidates, choose, tuning_half
from unseen.studies.unfamiliar import Tuning, Unfamiliar
from unseen.training.data import Role, TrainingData

EVERY_DOMAIN = "all"
ROLES: tuple[Role, ...] = ("validation", "unseen")


def evaluate(
    network: Network,
    data: TrainingData,
    detector_names: tuple[str, ...],
    unfamiliar: Sequence[Unfamiliar] = (),
    tuning: Tuning | None = None,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, Any]]:
    """Metrics (records for the store), per-example outputs of one trained network, and what was chosen for it.

    The metrics, on ID validation and unseen rows, per domain and over all domains of the role: accuracy, loss,
    calibration error; accuracy by class and by group. The outputs are the rows, their logits and, where there
    are unseen rows or unfamiliar data, each detector's score: `Results` computes all else from them, for the
    cells that it shows. Every data set passes the network once, for all detectors together.

    With `tuning`, options of the detectors that have ranges are chosen on it and one half of ID validation
    ("validation/chose"), and "NAME tuned" is scored beside NAME: what chose must not judge. "tuned" among the facts
    has the options.
    """
    tried = (
        {} if tuning is None else {name: candidates(name, tuning.draws) for name in tunable(detector_names)}
    )
    built = {  # as given: the first of the candidates, where there are any
        name: next(iter(tried[name].values())) if name in tried else detectors.build(name)
        for name in detector_names
    }
    observers = _each_once(built.values(), *(some.values() for some in tried.values()))
    arrays: dict[str, np.ndarray] = {}
    records: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    others = [*unfamiliar, *([] if tuning is None else [tuning.data])]
    examples = len(data.split.shift) + sum(map(len, others))
    with banks_of(network, data, examples, observers) as make:
        banks: dict[str, Bank] = {"validation": make.of("validation", observers)}
        if tuning is not None:
            banks["train"] = make.of("train", observers)
            half = choosing_half(data)
            arrays["validation/chose"] = half.numpy()
            inside = banks["validation"].take(half)
            outside = make.of_inputs(_encoded(data, "tuning", partial(tuning.inputs, data.split)), observers)
            facts["tuned"] = {}
            for name, some in tried.items():
                choice = choose(some, banks["train"], inside, outside)
                facts["tuned"][name] = choice.facts
                built[f"{name} tuned"] = some[choice.spec]
            observers = _each_once(built.values())
        banks["unseen"] = make.of("unseen", observers)
        for role in ROLES:
            arrays[f"{role}/rows"] = np.asarray(banks[role].ids)
            arrays[f"{role}/logits"] = banks[role].logits.numpy().copy()  # of a file that may be deleted
            if len(banks[role]):
                records += _performance(banks[role], role, data)
        if built and (len(banks["unseen"]) or unfamiliar):
            if not len(banks["unseen"]):
                del banks["unseen"]
            for other in unfamiliar:
                stored = _encoded(data, ("unfamiliar", other.name), partial(getattr, other, "inputs"))
                banks[f"unfamiliar/{other.name}"] = make.of_inputs(stored, observers)
            if "train" not in banks and any(type(d).fit is not Detector.fit for d in observers):
                banks["train"] = make.of("train", observers)
            for name, detector in built.items():
                for scored, score in _familiarity(name, detector, network, data, banks).items():
                    arrays[f"{scored}/score/{name}"] = score
    return records, arrays, facts


def _each_once(*groups: Iterable[Detector]) -> list[Detector]:
    return list(dict.fromkeys(chain(*groups)))


def _encoded(data: TrainingData, key: object, inputs: Callable[[], Any]) -> Any:
    """Inputs of no role, which are encoded once for all networks."""
    if key not in data.remembered:
        data.remembered[key] = data.preprocessing.encode(inputs())
    return data.remembered[key]


def choosing_half(data: TrainingData) -> Tensor:
    """(N,) bool: the rows of ID validation that choose options of detectors, the same for all networks."""
    if "choosing half" not in data.remembered:
        inputs = take(data.split.shift.inputs, data.split.validation)
        data.remembered["choosing half"] = tuning_half(inputs, derive_seed(data.split.seed, 5))
    return data.remembered["choosing half"]


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
