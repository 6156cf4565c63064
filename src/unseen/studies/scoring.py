"""All examples of a shift, scored by selectors at a network that is trained on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from unseen.curation.base import By, Pool, Selector
from unseen.curation.report import overlap, selection_report
from unseen.errors import UnseenWarning
from unseen.registry import Spec, selectors
from unseen.shifts import Shift, Split
from unseen.shifts.shift import take
from unseen.training import Learner, fit
from unseen.training.data import TrainingData


@dataclass(frozen=True)
class ScoredShift:
    """Scores (N,) and kept rows by selector; the report has a row a selector and part of the data."""

    shift: Shift
    scores: dict[str, Tensor]
    rows: dict[str, Tensor]
    report: pd.DataFrame

    @property
    def overlap(self) -> pd.DataFrame:
        """Jaccard indices of what the selectors keep."""
        return overlap(self.rows)

    def ids(self, selector: str) -> pd.DataFrame:
        """A row an example: id, domain, label, score of the selector, and whether it is kept."""
        shift, kept = self.shift, torch.zeros(len(self.shift), dtype=torch.bool)
        kept[self.rows[selector]] = True
        return pd.DataFrame({
            "id": list(shift.ids) if shift.ids is not None else list(range(len(shift))),
            "domain": [shift.domains[index] for index in shift.domain.tolist()],
            "label": [shift.classes[index] for index in shift.labels.tolist()],
            "score": self.scores[selector].numpy(),
            "kept": kept.numpy(),
        })  # fmt: skip


def score_shift(
    shift: Shift,
    chosen_by: Sequence[str],
    keep: float,
    *,
    by: By | None = "domain",
    network: str = "auto",
    backbone: str | None = None,
    steps: int = 300,
    seed: int = 0,
) -> ScoredShift:
    """Train a network by ERM on all examples, then score and choose from them with each selector.

    keep   share that is kept of each domain, class or all (`by`)
    steps  of training: scores of an example depend on how well it is fitted
    seed   of training, and of selectors that draw and were given none
    """
    every = torch.arange(len(shift))
    split = Split(shift, every, every, torch.arange(0), shift.domains, (), seed)
    learner = Learner(
        network=Spec.of(network),
        backbone=None if backbone is None else Spec.of(backbone),
        steps=steps,
        evaluations=1,
        keep="last",
    )
    data = TrainingData(split, learner.backbone)
    model = fit(learner, split, seed=seed, data=data).network
    pool = training_pool(data)
    scores, rows, reports = {}, {}, []
    for name in chosen_by:
        selector = seeded_selector(name, seed)
        scores[name] = selector.fit(model, pool)
        rows[name] = selector.select(scores[name], keep, by)
        report = selection_report(
            pool, rows[name], scores[name], domains=shift.domains, classes=shift.classes
        )
        lost = report.name[(report.part == "class") & (report.kept == 0)]
        if len(lost):
            warnings.warn(
                f"{name} keeps no example of class {', '.join(lost)}: choose within classes, or keep more",
                UnseenWarning,
                stacklevel=2,
            )
        report.insert(0, "selector", name)
        reports.append(report)
    return ScoredShift(shift, scores, rows, pd.concat(reports, ignore_index=True))


def training_pool(data: TrainingData) -> Pool:
    """The training rows of a split, as the network takes them."""
    rows, shift = data.split.train, data.split.shift
    inputs = data.preprocessing.finish(take(data.stored, rows))
    return Pool(inputs, shift.labels[rows], shift.domain[rows])


def seeded_selector(spec: str | Spec, seed: int) -> Selector:
    """A registered selector; one that draws, and was given no seed, draws by `seed`."""
    spec = Spec.of(spec)
    draws = "seed" in selectors[spec.name].options() and "seed" not in spec.options
    return selectors.build(spec.with_options(seed=seed) if draws else spec)
