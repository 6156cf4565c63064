"""When to trust the chosen learner: calibration, abstention and familiarity, from its per-example outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from unseen.measures.calibration import calibration_error, reliability_curve
from unseen.measures.coverage import risk_coverage, threshold_at_coverage
from unseen.reports import plots
from unseen.studies.results import Results

COVERAGE = 0.95
"""Share of ID validation that a detector accepts in a study's results."""
EXAMPLES_PER_BIN, MOST_BINS = 30, 12
"""Of the reliability figure: bins of fewer examples would show noise."""
SHOWN_COVERAGES = (1.0, 0.9, 0.75, 0.5)


@dataclass(frozen=True)
class Outputs:
    """What one run predicted for a role ("validation" or "unseen"): probabilities (N, C), labels, domains (N,),
    and familiarity scores (N,) where a detector was asked for."""

    seed: int
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    domain: NDArray[np.int64]
    scores: NDArray[np.float64] | None

    @property
    def confidence(self) -> NDArray[np.float64]:
        return self.probabilities.max(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.probabilities.argmax(1) == self.labels


Pair = tuple[Outputs, Outputs]
"""ID validation and unseen outputs of one run."""


def run_outputs(results: Results, method: str, detector: str | None) -> list[Pair]:
    """Both roles' outputs of every selected run of a method, in the order of their seeds."""
    cells = results.selected[results.selected.method == method].sort_values("seed", kind="stable")
    return [
        (_read(results, cell, "validation", detector), _read(results, cell, "unseen", detector))
        for cell in cells.itertuples()
    ]


def _read(results: Results, cell: Any, role: str, detector: str | None) -> Outputs:
    rows, logits = results.arrays(cell.cell, f"{role}/rows", f"{role}/logits")
    scores = None if detector is None else results.arrays(cell.cell, f"{role}/score/{detector}")[0]
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return Outputs(cell.seed, probabilities, results.labels[rows], results.domain[rows], scores)


@dataclass(frozen=True)
class CalibrationRow:
    """Means over runs for one role; `excess` is confidence minus accuracy."""

    role: str
    confidence: float
    accuracy: float
    excess: float
    error: float


def calibration(pairs: Sequence[Pair]) -> tuple[str, list[CalibrationRow]]:
    """Reliability figure of all runs together, and a row a role."""
    curves, rows = {}, []
    for index, role in enumerate(("ID validation", "unseen")):
        runs = [pair[index] for pair in pairs]
        probabilities = np.concatenate([run.probabilities for run in runs])
        labels = np.concatenate([run.labels for run in runs])
        bins = int(np.clip(len(labels) // EXAMPLES_PER_BIN, 1, MOST_BINS))
        curves[role] = reliability_curve(probabilities, labels, bins, adaptive=True)
        confidence = float(np.mean([run.confidence.mean() for run in runs]))
        accuracy = float(np.mean([run.correct.mean() for run in runs]))
        error = float(np.mean([calibration_error(run.probabilities, run.labels) for run in runs]))
        rows.append(CalibrationRow(role, confidence, accuracy, confidence - accuracy, error))
    return plots.reliability("reliability", curves), rows


def abstention(pairs: Sequence[Pair], detector: str | None) -> tuple[str, list[tuple[str, list[float]]]]:
    """Risk-coverage figure, averaged over runs, and the error rates at `SHOWN_COVERAGES`."""
    ways: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    if detector is not None:
        ways[f"unseen, by {detector}"] = [(unseen.scores, unseen.correct) for _, unseen in pairs]  # type: ignore[misc]
    ways["unseen, by confidence"] = [(unseen.confidence, unseen.correct) for _, unseen in pairs]
    ways["ID validation, by confidence"] = [(known.confidence, known.correct) for known, _ in pairs]
    grid = np.linspace(0.05, 1, 96)
    curves = {}
    for way, runs in ways.items():
        each = [risk_coverage(scores, correct) for scores, correct in runs]
        curves[way] = np.mean([np.interp(grid, curve.coverage, curve.risk) for curve in each], axis=0)
    table = [
        (way, [float(np.interp(c, grid, risk)) for c in SHOWN_COVERAGES]) for way, risk in curves.items()
    ]
    return plots.risk_coverage("risk-coverage", grid, curves), table


@dataclass(frozen=True)
class DomainFamiliarity:
    """The histogram of one unseen domain, of the first run that judged it."""

    domain: str
    figure: str
    seed: int


def familiarity(results: Results, pairs: Sequence[Pair]) -> list[DomainFamiliarity]:
    """A histogram for every unseen domain: its scores beside those of the same run's ID validation."""
    found = []
    for domain in results.unseen_domains:
        index = results.domains.index(domain)
        for known, unseen in pairs:
            inside = unseen.domain == index
            if inside.any() and known.scores is not None and unseen.scores is not None:
                threshold = threshold_at_coverage(known.scores, COVERAGE)
                figure = plots.familiarity_histogram(
                    f"familiarity-{index}", domain, known.scores, unseen.scores[inside], threshold
                )
                found.append(DomainFamiliarity(domain, figure, unseen.seed))
                break
    return found
