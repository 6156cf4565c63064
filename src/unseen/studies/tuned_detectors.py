"""Options of a detector chosen on some unfamiliar data, and judged on others that the choice has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.detection import Detector
from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.registry import Spec, detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.studies.plan import drawn_value
from unseen.studies.unfamiliar import row_hashes
from unseen.training.data import network_outputs


@dataclass(frozen=True)
class TunedDetector:
    """The chosen options.

    spec      the detector with them
    detector  fitted
    draws     a row a candidate: draw (0 are the given options), detector, tuning_auroc
    judged    a row a test set: set, n, auroc, auroc_low, auroc_high (DeLong, 95 %), and given_auroc, what the given
              options reach there
    """

    spec: Spec
    detector: Detector
    draws: pd.DataFrame
    judged: pd.DataFrame


def tune_detector(
    detector: str | Spec,
    network: Network,
    preprocessing: Preprocessing,
    train: tuple[Any, Any],
    familiar: tuple[Any, Any],
    tuning: Any,
    test: Mapping[str, Any],
    *,
    draws: int = 20,
) -> TunedDetector:
    """Draw options from the detector's registered ranges and keep those with the highest AUROC on tuning data.

    network        trained; `preprocessing` is what its inputs went through
    train          raw training inputs and their labels (N,), on which every candidate is fitted
    familiar       raw familiar inputs beside the tuning data and beside the test data: two sets, neither trained on
    tuning         raw unfamiliar inputs that choose
    test           name -> raw unfamiliar inputs that judge, and never choose
    draws          candidates besides the given options, from 1, always the same ones; ties go to the earliest
    As OpenOOD chooses (Zhang et al. 2023, arXiv 2306.09301, section 3), with tuning and test data kept apart. Raises
    `InputError` where a test set or the test's familiar inputs share an example with what is tuned or trained on,
    and for a detector without ranges.
    """
    given = Spec.of(detector)
    ranges = detectors.check(given).search
    if not ranges:
        raise InputError(
            f"detector {given.name!r}", "has no options with a search range", "Judge it as it is."
        )
    if draws < 1:
        raise InputError("draws", f"are {draws}", "Give a number from 1, such as 20.")
    if not test:
        raise InputError("test", "has no unfamiliar data", "Give one set at least: name -> inputs.")
    require_apart(
        {"the training data": train[0], "the tuning data": tuning, "the tuning's familiar data": familiar[0]},
        {**test, "the test's familiar data": familiar[1]},
    )
    candidates = [given, *(_drawn(given, ranges, draw) for draw in range(1, draws + 1))]
    built = [detectors.build(spec) for spec in candidates]

    def outputs(inputs: Any, observer: Detector) -> Bank:
        return network_outputs(network, preprocessing, preprocessing.encode(inputs), observers=[observer])

    def banks(observer: Detector) -> list[Bank]:
        found = [outputs(inputs, observer) for inputs in (train[0], familiar[0], tuning)]
        found[0].labels = torch.as_tensor(train[1])
        return found

    shared = None if built[0].observes else banks(built[0])
    found = []
    for each in built:  # what observers keep of a pass depends on their options
        learnt, inside, outside = shared or banks(each)
        each.fit(learnt)
        found.append(ood_metrics(each.score(inside), each.score(outside), confidence=None).auroc)
    chosen = int(np.argmax(found))
    table = pd.DataFrame(
        {"draw": range(draws + 1), "detector": [str(spec) for spec in candidates], "tuning_auroc": found}
    )
    rows = []
    for name, inputs in test.items():
        own, other = (
            ood_metrics(each.score(outputs(familiar[1], each)), each.score(outputs(inputs, each)))
            for each in (built[chosen], built[0])
        )
        rows.append((name, own.n_unfamiliar, own.auroc, own.auroc_low, own.auroc_high, other.auroc))
    columns = ["set", "n", "auroc", "auroc_low", "auroc_high", "given_auroc"]
    return TunedDetector(candidates[chosen], built[chosen], table, pd.DataFrame(rows, columns=columns))


def _drawn(spec: Spec, ranges: Mapping[str, Any], draw: int) -> Spec:
    return spec.with_options(
        **{name: drawn_value(ranges[name], f"{spec.name}.{name}", draw) for name in ranges}
    )


def require_apart(used: Mapping[str, Any], judging: Mapping[str, Any]) -> None:
    """Raise `InputError` where raw inputs that judge are, by their hash, among those that were used."""
    seen = {name: set(row_hashes(inputs)) for name, inputs in used.items()}
    for name, inputs in judging.items():
        hashes = row_hashes(inputs)
        for source, known in seen.items():
            if shared := sum(each in known for each in hashes):
                raise InputError(
                    f"test data {name!r}",
                    f"share {shared} of {len(hashes)} examples with {source}",
                    "Judge on others: what chose cannot judge.",
                )
