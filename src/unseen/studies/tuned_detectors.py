"""Options of a detector chosen on some unfamiliar data, and judged on others that the choice has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.detection import Detector
from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.registry import Spec, detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.studies.plan import drawn_value
from unseen.studies.unfamiliar import require_apart, row_hashes
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
    drawn = _drawn(given, draws)
    built = {spec: detectors.build(spec) for spec in dict.fromkeys(drawn)}

    def outputs(inputs: Any, observers: Sequence[Detector]) -> Bank:
        return network_outputs(network, preprocessing, preprocessing.encode(inputs), observers=observers)

    learnt, inside, outside = (outputs(each, [*built.values()]) for each in (train[0], familiar[0], tuning))
    learnt.labels = torch.as_tensor(train[1])
    choice = choose(built, learnt, inside, outside)
    found = [choice.aurocs[spec] for spec in drawn]
    table = pd.DataFrame(
        {"draw": range(draws + 1), "detector": [str(spec) for spec in drawn], "tuning_auroc": found}
    )
    rows = []
    for name, inputs in test.items():
        two = built[choice.spec], built[given]
        known, new = outputs(familiar[1], two), outputs(inputs, two)
        own, other = (ood_metrics(each.score(known), each.score(new)) for each in two)
        rows.append((name, own.n_unfamiliar, own.auroc, own.auroc_low, own.auroc_high, other.auroc))
    columns = ["set", "n", "auroc", "auroc_low", "auroc_high", "given_auroc"]
    return TunedDetector(choice.spec, built[choice.spec], table, pd.DataFrame(rows, columns=columns))


@dataclass(frozen=True)
class ChosenOptions:
    """The candidate with the highest AUROC on tuning data; NaN where one cannot be fitted on the data."""

    spec: Spec
    aurocs: dict[Spec, float]

    @property
    def facts(self) -> dict[str, Any]:
        """As plain values: spec, auroc, given_auroc (of the given options), candidates (distinct ones)."""
        given, *_ = self.aurocs.values()
        return {
            "spec": self.spec.to_json(),
            "auroc": self.aurocs[self.spec],
            "given_auroc": given,
            "candidates": len(self.aurocs),
        }


def candidates(detector: str | Spec, draws: int) -> dict[Spec, Detector]:
    """The given options and those of `draws` draws from the detector's ranges, each once, unfitted."""
    return {spec: detectors.build(spec) for spec in dict.fromkeys(_drawn(Spec.of(detector), draws))}


def choose(built: Mapping[Spec, Detector], train: Bank, familiar: Bank, unfamiliar: Bank) -> ChosenOptions:
    """Fit every candidate on `train` and keep the one that tells familiar from unfamiliar outputs best.

    The first candidate has the given options, and wins ties. Another that cannot be fitted on these outputs, or gives
    scores that are not finite, is left out.
    """
    found: dict[Spec, float] = {}
    for number, (spec, detector) in enumerate(built.items()):
        try:
            inside, outside = (detector.fit(train).score(bank) for bank in (familiar, unfamiliar))
        except InputError:
            if number == 0:
                raise
            found[spec] = float("nan")
            continue
        whole = bool(torch.isfinite(inside).all() and torch.isfinite(outside).all())
        found[spec] = ood_metrics(inside, outside, confidence=None).auroc if whole else float("nan")
    return ChosenOptions(max(found, key=lambda spec: (found[spec] == found[spec], found[spec])), found)


def tuning_half(inputs: Any, seed: int) -> Tensor:
    """(N,) bool: the half of N familiar raw inputs that chooses; equal inputs are in the same half, by `seed`.

    Raises `InputError` where there are fewer than two that differ.
    """
    names, group = np.unique(row_hashes(inputs), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            "ID validation",
            f"has {len(names)} distinct example(s)",
            "Tuning detectors takes two at least: one to choose, one to judge.",
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return (order < len(names) // 2)[torch.from_numpy(group)]


def _drawn(spec: Spec, draws: int) -> list[Spec]:
    """The given options, then a draw each; every option has a stream of its own."""
    ranges = detectors[spec.name].search
    return [spec] + [
        spec.with_options(**{o: drawn_value(ranges[o], f"{spec.name}.{o}", draw) for o in ranges})
        for draw in range(1, draws + 1)
    ]
