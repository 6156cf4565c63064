"""What `unseen measure` finds out: numbers about data, about a model, and about a study, each with what it means."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.errors import InputError, MissingExtra, UnseenWarning
from unseen.measures.accuracy_line import accuracy_line
from unseen.measures.calibration import calibration_error
from unseen.measures.domain_distance import domain_distances
from unseen.measures.feature_spectrum import spectrum_report
from unseen.measures.kernel_spectrum import vendi_score
from unseen.measures.label_noise import label_noise
from unseen.measures.shift_anatomy import ShiftAnatomy, shift_anatomy
from unseen.measures.task_difficulty import task_difficulty
from unseen.networks import Bank
from unseen.registry import Spec
from unseen.shifts import Shift, Split
from unseen.shifts.shift import take
from unseen.studies.results import Results
from unseen.studies.statistics import proportion_interval
from unseen.training import Predictor, fit
from unseen.training.data import TrainingData
from unseen.training.learner import Learner

EXAMPLES = 2000
"""Examples, drawn at random, for what costs their square."""
FOLDS = 3
"""Parts of the data whose labels are judged by a network that was trained on the others."""
SUSPECTS = 10
"""Rows that are named in the table; measure.json has all."""


@dataclass(frozen=True)
class Section:
    """A table with what it means. Columns whose names end in " low" and " high" are bounds of 95 % intervals."""

    name: str
    title: str
    note: str
    table: pd.DataFrame
    bars: tuple[str, str] | None = None
    """Columns of names and of values that a figure shows, with the value's bounds if there are any."""
    facts: dict[str, Any] = field(default_factory=dict)


def measure_data(
    shift: Shift, *, network: str = "auto", backbone: str | None = None, steps: int = 300, seed: int = 0
) -> Iterator[Section]:
    """Sections about a data set with domains, as they are found.

    network, backbone, steps  of the plain learner that is trained on all domains but one, in turn, to see how much
                              worse it is there, and why
    """
    learner = Learner(
        network=Spec.of(network), backbone=None if backbone is None else Spec.of(backbone), steps=steps
    )
    every = torch.arange(len(shift))
    data = TrainingData(Split(shift, every, every, every[:0], shift.domains, (), seed), learner.backbone)
    chosen = torch.randperm(len(shift), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    points = _points(data, chosen)
    labels, domain = shift.labels[chosen].numpy(), shift.domain[chosen].numpy()
    yield _domains(shift)
    if len(np.unique(domain)) > 1:
        yield Section(
            "distances",
            "How far the domains lie apart",
            "a_distance: 0 when a linear classifier cannot tell two domains apart, 2 when it always can. mmd and "
            "energy: 0 for equal distributions; p by permutation. otdd: transport between the labelled sets, in units "
            "of the inputs.",
            domain_distances(points, domain, labels, shift.domains, permutations=199, seed=seed),
            ("pair", "a_distance"),
        )
    yield _geometry(points, labels, seed)
    yield from _drops(shift, learner, seed)
    yield from _noise(shift, learner, seed)


def measure_model(predictor: Predictor, shift: Shift | None = None, *, seed: int = 0) -> Iterator[Section]:
    """Sections about a model: from what its folder remembers of validation, and from labelled data if given.

    shift  labelled data with the model's class names; each of its domains is compared with validation
    """
    reference = predictor.reference
    if reference is None and shift is None:
        raise InputError(
            "model",
            "remembers no validation examples, and no data are given",
            "Give a labelled data set beside it.",
        )
    sets: dict[str, Bank] = {} if reference is None else {"ID validation": reference.bank}
    if shift is not None:
        labels = _labels_of(predictor, shift)
        bank = predictor.outputs(shift.inputs)
        bank.labels, bank.domain = labels, shift.domain
        sets |= {
            name: bank.take(shift.domain == index)
            for index, name in enumerate(shift.domains)
            if (shift.domain == index).any()
        }
    yield _quality(sets)
    yield _features(sets)
    if reference is not None and shift is not None:
        rows = [
            anatomy_row(name, _anatomy(reference.bank, bank, seed))
            for name, bank in sets.items()
            if name != "ID validation"
        ]
        yield _anatomy_section(rows)


def measure_study(results: Results) -> Iterator[Section]:
    """Sections about the models of a study: do their accuracies at home and elsewhere lie on a line?"""
    final = results.metrics[(results.metrics.step == -1) & (results.metrics.metric == "accuracy")]
    known = final[(final.role == "validation") & (final.domain == "all")].set_index("cell").value
    rows = []
    for domain in results.unseen_domains:
        elsewhere = final[(final.role == "unseen") & (final.domain == domain)].set_index("cell").value
        pairs = pd.DataFrame({"known": known, "unseen": elsewhere}).dropna()
        pairs = pairs[((pairs > 0) & (pairs < 1)).all(axis=1)]
        if len(pairs) < 3 or pairs.known.nunique() < 2:
            continue
        line = accuracy_line(pairs.known, pairs.unseen)
        rows.append({
            "domain": domain, "models": len(pairs), "r squared": line.r_squared, "r squared low": line.low,
            "r squared high": line.high, "slope": line.slope, "intercept": line.intercept,
        })  # fmt: skip
    if not rows:
        raise InputError(
            "study", "has fewer than three models of different accuracy for each unseen domain",
            "Run it with more learners, seeds, or --search.",
        )  # fmt: skip
    yield Section(
        "line",
        "Accuracy on the line",
        "On a probit axis, accuracy on the unseen domain is a line in accuracy on ID validation where r squared is "
        "near 1: then the better model at home is the better one there. Near 0, choosing at home says little.",
        pd.DataFrame(rows),
        ("domain", "r squared"),
    )


def _points(data: TrainingData, rows: Tensor) -> NDArray[np.float64]:
    """(N, D) inputs as a network takes them, flattened; or a backbone's features."""
    inputs = data.preprocessing.finish(take(data.stored, rows))
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    return torch.cat([part.flatten(1).double() for part in parts], 1).numpy()


def _domains(shift: Shift) -> Section:
    counts = np.zeros((len(shift.domains), len(shift.classes)), dtype=int)
    np.add.at(counts, (shift.domain.numpy(), shift.labels.numpy()), 1)
    total, rows = counts.sum(0), []
    for name, count in zip(shift.domains, counts, strict=True):
        row: dict[str, Any] = {"domain": name, "examples": int(count.sum())}
        if len(shift.classes) <= 6:
            row |= {f"share {c}": n / count.sum() for c, n in zip(shift.classes, count, strict=True)}
        rest = total - count
        if rest.sum():
            row["label shift"] = float(np.abs(count / count.sum() - rest / rest.sum()).sum() / 2)
        rows.append(row)
    return Section(
        "domains",
        "Domains and their classes",
        "label shift: total variation between a domain's class frequencies and those of the others, 0 to 1.",
        pd.DataFrame(rows),
    )


def _geometry(points: NDArray[np.float64], labels: NDArray[Any], seed: int) -> Section:
    rows = []
    spectrum = spectrum_report(points, normalize=False)
    rows += [
        ("examples", len(points), "that were looked at"),
        ("dimensions", points.shape[1], "of inputs as networks take them"),
        ("effective rank", spectrum.effective_rank, "directions that matter"),
        ("vendi score", vendi_score(points[np.linalg.norm(points, axis=1) > 0]), "effectively different examples"),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenWarning)  # what they say is said in the table
        try:
            found = task_difficulty(points, labels, 0.01, delta="min", seed=seed)
            assert found.task is not None
            rows += [
                ("intrinsic dimension", found.task.intrinsic_dim, "by five nearest neighbours"),
                ("class separation", found.task.delta, "least distance between classes"),
                ("log10 bits", found.log10_bits, "of inductive bias for 1 % error; orders of magnitude"),
            ]  # fmt: skip
        except InputError as error:
            rows.append(("task difficulty", float("nan"), str(error)))
    return Section(
        "geometry",
        "How hard the task is",
        "Numbers of the data alone: no model is involved.",
        pd.DataFrame(rows, columns=["measure", "value", "what it is"]),
    )


def _drops(shift: Shift, learner: Learner, seed: int) -> Iterator[Section]:
    if len(shift.domains) < 3:
        return  # a domain that is left out must leave two: the rule of studies
    rows = []
    for name in shift.domains:
        split = shift.split(name, seed=seed)
        data = TrainingData(split, learner.backbone)
        model = fit(learner, split, seed=seed, data=data).network
        rows.append(
            anatomy_row(name, _anatomy(data.bank(model, "validation"), data.bank(model, "unseen"), seed))
        )
    yield _anatomy_section(rows)


def _anatomy(source: Bank, target: Bank, seed: int) -> ShiftAnatomy:
    """Of errors, by the network's features; without the label part where the source lacks a class."""
    assert source.labels is not None and target.labels is not None
    labels = source.labels.numpy(), target.labels.numpy()
    known = set(labels[0].tolist()) >= set(labels[1].tolist())
    return shift_anatomy(
        (~source.correct).float(), (~target.correct).float(), source.features, target.features,
        *(labels if known else (None, None)), resamples=500, seed=seed,
    )  # fmt: skip


def anatomy_row(name: str, found: ShiftAnatomy) -> dict[str, Any]:
    """A domain's drop and its parts, in shares of examples."""
    return {
        "domain": name,
        "drop": found.drop.value,
        "drop low": found.drop.low,
        "drop high": found.drop.high,
        "label": found.label.value,
        "covariate": found.covariate,
        "concept": found.concept.value,
        "concept low": found.concept.low,
        "concept high": found.concept.high,
        "overlap": found.overlap,
    }


def _anatomy_section(rows: list[dict[str, Any]]) -> Section:
    return Section(
        "anatomy",
        "Why it is worse elsewhere",
        "drop: error there less error on ID validation. label: classes have other frequencies; covariate: other "
        "inputs; concept: other labels for the same inputs. Overlap below 0.1: the two cannot be told apart.",
        pd.DataFrame(rows),
        ("domain", "drop"),
    )


def _noise(shift: Shift, learner: Learner, seed: int) -> Iterator[Section]:
    """Wrong labels, by networks that did not see them; classes with fewer than FOLDS examples are left out."""
    counts = shift.labels.bincount(minlength=len(shift.classes))
    inside = (counts[shift.labels] >= FOLDS).nonzero()[:, 0]
    present = (counts >= FOLDS).nonzero()[:, 0]
    if len(present) < 2:
        return
    logits = torch.empty(len(inside), len(shift.classes))
    order = inside[torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))]
    fold = torch.empty(len(shift), dtype=torch.int64)
    fold[order[shift.labels[order].argsort(stable=True)]] = torch.arange(len(inside)) % FOLDS
    for number in range(FOLDS):
        held_out = fold[inside] == number
        rows, others = inside[~held_out], inside[held_out]
        domains = tuple(shift.domains[i] for i in shift.domain[rows].unique().tolist())
        split = Split(shift, rows, others, rows[:0], domains, (), seed)
        data = TrainingData(split, learner.backbone)
        logits[held_out] = data.bank(fit(learner, split, seed=seed, data=data).network, "validation").logits
    probabilities = logits[:, present].softmax(1)
    labels = torch.searchsorted(present, shift.labels[inside])
    try:
        found = label_noise(probabilities, labels, resamples=50, seed=seed)
    except MissingExtra as error:
        table = pd.DataFrame([{"wrong labels": float("nan"), "note": str(error)}])
        yield Section("noise", "Wrong labels", "Not measured.", table)
        return
    suspects = inside[torch.from_numpy(found.suspects)].tolist()
    table = pd.DataFrame([{
        "wrong labels": found.rate, "wrong labels low": found.low, "wrong labels high": found.high,
        "accuracy": float((probabilities.argmax(1) == labels).double().mean()), "suspects": len(suspects),
        "rows to look at first": ", ".join(map(str, suspects[:SUSPECTS])),
    }])  # fmt: skip
    yield Section(
        "noise",
        "Wrong labels",
        "Confident learning with networks that did not see the label. What they confuse looks like wrong labels: the "
        "share is an upper bound where their accuracy is low, so look at the rows.",
        table,
        facts={"suspects": suspects},
    )


def _quality(sets: dict[str, Bank]) -> Section:
    rows = []
    for name, bank in sets.items():
        interval = proportion_interval(int(bank.correct.sum()), len(bank))
        confidence = bank.probabilities.amax(1)
        rows.append({
            "set": name, "examples": len(bank), "accuracy": interval.estimate, "accuracy low": interval.low,
            "accuracy high": interval.high,
            "calibration error": calibration_error(bank.probabilities, bank.labels),
            "overconfidence": float(confidence.mean() - bank.correct.float().mean()),
        })  # fmt: skip
    return Section(
        "quality",
        "How good it is",
        "calibration error: mean distance of confidence and accuracy in 15 bins; overconfidence: mean confidence less "
        "accuracy.",
        pd.DataFrame(rows),
        ("set", "accuracy"),
    )


def _features(sets: dict[str, Bank]) -> Section:
    rows = []
    for name, bank in sets.items():
        spectrum = spectrum_report(bank.features[:EXAMPLES], normalize=False)
        rows.append({
            "set": name, "dimensions": bank.features.shape[1], "effective rank": spectrum.effective_rank,
            "stable rank": spectrum.stable_rank,
        })  # fmt: skip
    return Section(
        "features",
        "How rich its features are",
        "effective rank: directions that matter, by the entropy of the singular values; stable rank: by their squares.",
        pd.DataFrame(rows),
    )


def _labels_of(predictor: Predictor, shift: Shift) -> Tensor:
    """The data's labels as numbers of the model's classes, by name."""
    unknown = sorted(set(shift.classes) - set(predictor.classes))
    if unknown:
        raise InputError(
            "data", f"have classes that the model does not know: {', '.join(unknown[:5])}",
            f"It knows {', '.join(predictor.classes[:10])}.",
        )  # fmt: skip
    index = torch.tensor([predictor.classes.index(name) for name in shift.classes])
    return index[shift.labels]
