"""How well a familiarity score tells familiar (in-distribution) from unfamiliar inputs, with intervals.

Higher scores are more familiar, everywhere. Only the ranking counts: every number here is unchanged by an
increasing transformation of the scores, and equal scores are treated as equal, never ordered by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

from unseen.errors import InputError
from unseen.measures.arrays import as_correct, as_numbers, same_length
from unseen.measures.coverage import aurc, smallest_count

__all__ = [
    "AurocComparison",
    "OODMetrics",
    "aurc",
    "compare_auroc",
    "delong_interval",
    "fpr_at_tpr",
    "ood_metrics",
    "oscr",
]

Interval = tuple[float, float]


@dataclass(frozen=True)
class OODMetrics:
    """Separation of two sets of scores; all in [0, 1].

    auroc     chance that a familiar input scores above an unfamiliar one, ties counting one half
    aupr_in   area under precision-recall with the familiar inputs as positives
    aupr_out  the same with the unfamiliar ones as positives (ranked by the negated score)
    fpr95     share of unfamiliar inputs accepted by the highest threshold that accepts 95 % of the familiar

    `*_low`, `*_high` bound the confidence interval. The areas under precision-recall depend on the ratio of
    the two set sizes: compare them only at equal ratios.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    fpr95_low: float
    fpr95_high: float
    n_familiar: int
    n_unfamiliar: int


def ood_metrics(
    familiar: Any,
    unfamiliar: Any,
    *,
    confidence: float | None = 0.95,
    aupr: Literal["step", "trapezoid"] = "step",
) -> OODMetrics:
    """AUROC, AUPR-in, AUPR-out and FPR95 of scores `familiar` (N,) and `unfamiliar` (M,), from one sort.

    confidence
          level of the intervals; None leaves them out (NaN), which takes a tenth of the time
    aupr  "step" is average precision; "trapezoid" joins the points of the curve by lines, as OpenOOD does,
          which is too favourable (Davis & Goadrich, ICML 2006): use it to compare with its published tables

    FPR95 here has the familiar inputs as positives (Hendrycks & Gimpel, 2017; Liang et al., 2018). OpenOOD
    1.5 reports the share of familiar inputs rejected when 95 % of the unfamiliar ones are:
    `fpr_at_tpr(-unfamiliar, -familiar)`. Intervals: see `delong_interval` and `fpr_at_tpr`. Raises
    InputError for an empty set, NaN, or a `confidence` outside (0, 1).
    """
    if aupr not in ("step", "trapezoid"):
        raise InputError("aupr", f"is {aupr!r}", "Give 'step' or 'trapezoid'.")
    ranks = _Ranks.of(familiar, unfamiliar)
    unknown: Interval = (np.nan, np.nan)
    fpr95, accepted = _false_accepted_share(ranks, 0.95)
    return OODMetrics(
        ranks.auroc,
        *(unknown if confidence is None else _delong_interval(ranks, confidence)),
        _area_under_precision_recall(ranks.familiar, ranks.unfamiliar, aupr),
        _area_under_precision_recall(ranks.unfamiliar[::-1], ranks.familiar[::-1], aupr),
        fpr95,
        *(unknown if confidence is None else _fpr_interval(ranks, 0.95, fpr95, accepted, confidence)),
        ranks.n,
        ranks.m,
    )


def delong_interval(familiar: Any, unfamiliar: Any, confidence: float = 0.95) -> Interval:
    """Confidence interval of the AUROC: DeLong's variance (Biometrics 1988) on the logit scale.

    The logit keeps the bounds inside (0, 1) and is closer to its nominal level near 1 than the plain
    interval. Where DeLong's variance is zero or undefined (perfect separation, all scores equal, a single
    example), it is Newcombe's score interval (Statistics in Medicine 2006, method 5), which stays honest
    there.
    """
    return _delong_interval(_Ranks.of(familiar, unfamiliar), confidence)


def fpr_at_tpr(
    familiar: Any, unfamiliar: Any, tpr: float = 0.95, *, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Share of unfamiliar inputs at or above the highest threshold that accepts `tpr` of the familiar ones.

    Returns it with a confidence interval that counts both sources of error: where the true `tpr` threshold
    lies among the N familiar scores (a Binomial rank, as in distribution-free intervals of quantiles), and
    the share of unfamiliar inputs above it (Jeffreys' Beta law given M of them). The two are mixed by
    quadrature, not by sampling: no seed. With few familiar inputs (N < 72 for 95 %) the threshold may lie
    below all of them and no bound from above exists: the interval then ends at 1.
    """
    ranks = _Ranks.of(familiar, unfamiliar)
    fpr, false_accepted = _false_accepted_share(ranks, tpr)
    return fpr, _fpr_interval(ranks, tpr, fpr, false_accepted, confidence)


def oscr(familiar: Any, unfamiliar: Any, correct: Any) -> float:
    """Open-set classification rate: area under correct classification rate against false positive rate.

    Dhamija et al., NeurIPS 2018. `correct` (N,) says which familiar inputs are classified correctly. It is
    the chance that a familiar input is both classified correctly and scored above an unfamiliar one; it
    equals the AUROC when all are correct and is at most the accuracy.
    """
    familiar = as_numbers("familiar", familiar)
    correct = as_correct("correct", correct)
    same_length("correct", correct, "familiar", len(familiar))
    return float((correct * _Ranks.of(familiar, unfamiliar).familiar_placements()).mean())


@dataclass(frozen=True)
class AurocComparison:
    """AUROC of detectors a and b on the same inputs; `difference` is a - b, with interval and p-value."""

    auroc_a: float
    auroc_b: float
    difference: float
    low: float
    high: float
    p_value: float


def compare_auroc(
    familiar_a: Any, unfamiliar_a: Any, familiar_b: Any, unfamiliar_b: Any, *, confidence: float = 0.95
) -> AurocComparison:
    """Paired test of two detectors' AUROC on the same inputs in the same order (DeLong et al., 1988).

    Two-sided p-value of equal AUROC; 1 when the two rank all inputs alike, NaN (as the bounds) when they
    differ without any variance, as a perfect detector and a perfectly wrong one. Raises InputError for
    lengths that differ and for sets of fewer than two inputs.
    """
    a, b = _Ranks.of(familiar_a, unfamiliar_a), _Ranks.of(familiar_b, unfamiliar_b)
    for name, count_a, count_b in (("familiar_b", a.n, b.n), ("unfamiliar_b", a.m, b.m)):
        if count_a != count_b:
            raise InputError(
                name, f"has {count_b} scores, but a has {count_a}", "Score the same inputs twice."
            )
        if count_a < 2:
            raise InputError(name, "has a single score", "Two inputs at least are needed for a variance.")
    difference = a.auroc - b.auroc
    z = norm.isf(_tail(confidence))
    error = np.sqrt(
        (a.familiar_placements() - b.familiar_placements()).var(ddof=1) / a.n
        + (a.unfamiliar_placements() - b.unfamiliar_placements()).var(ddof=1) / a.m
    )
    if error == 0:
        known = 0.0 if difference == 0 else np.nan
        return AurocComparison(a.auroc, b.auroc, difference, known, known, 1.0 if difference == 0 else np.nan)
    p_value = 2 * norm.sf(abs(difference) / error)
    low, high = max(difference - z * error, -1.0), min(difference + z * error, 1.0)
    return AurocComparison(a.auroc, b.auroc, difference, float(low), float(high), float(p_value))


@dataclass(frozen=True)
class _Ranks:
    """Both sets sorted together once: counts at each distinct score, from the highest down.

    `position` says at which distinct score each input lies, familiar inputs first.
    """

    familiar: NDArray[np.int64]
    unfamiliar: NDArray[np.int64]
    position: NDArray[np.int64]

    @classmethod
    def of(cls, familiar: Any, unfamiliar: Any) -> _Ranks:
        familiar, unfamiliar = as_numbers("familiar", familiar), as_numbers("unfamiliar", unfamiliar)
        distinct, position = np.unique(np.concatenate([familiar, unfamiliar]), return_inverse=True)
        position = len(distinct) - 1 - position
        return cls(
            np.bincount(position[: len(familiar)], minlength=len(distinct)),
            np.bincount(position[len(familiar) :], minlength=len(distinct)),
            position,
        )

    @property
    def n(self) -> int:
        return int(self.familiar.sum())

    @property
    def m(self) -> int:
        return int(self.unfamiliar.sum())

    @property
    def auroc(self) -> float:
        # whole numbers up to the division: exact, and the same for any order of the inputs
        twice_above = 2 * (self.m - self.unfamiliar.cumsum()) + self.unfamiliar
        return float((self.familiar * twice_above).sum() / (2 * self.n * self.m))

    def familiar_placements(self) -> NDArray[np.float64]:
        """Share of unfamiliar inputs below each familiar one, ties one half, (N,) in the order given."""
        share_below = (self.m - self.unfamiliar.cumsum() + self.unfamiliar / 2) / self.m
        return share_below[self.position[: self.n]]

    def unfamiliar_placements(self) -> NDArray[np.float64]:
        """Share of familiar inputs above each unfamiliar one, ties one half, (M,) in the order given."""
        share_above = (self.familiar.cumsum() - self.familiar / 2) / self.n
        return share_above[self.position[self.n :]]


def _delong_interval(ranks: _Ranks, confidence: float) -> Interval:
    auroc, z = ranks.auroc, norm.isf(_tail(confidence))
    variance = 0.0
    if min(ranks.n, ranks.m) > 1:
        variance = (
            ranks.familiar_placements().var(ddof=1) / ranks.n
            + ranks.unfamiliar_placements().var(ddof=1) / ranks.m
        )
    if variance < 1e-24 or auroc in (0.0, 1.0):
        return _newcombe_interval(auroc, ranks.n, ranks.m, z)
    centre, error = np.log(auroc / (1 - auroc)), np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = 1 / (1 + np.exp(-(centre + np.array([-z, z]) * error)))
    return float(low), float(high)


def _newcombe_interval(auroc: float, n: int, m: int, z: float) -> Interval:
    """The values whose own standard error reaches `auroc`: a score interval, as Wilson's for a share."""

    def excess(value: float) -> float:
        extra = (n + m) / 2 - 1
        spread = 1 + extra * ((1 - value) / (2 - value) + value / (1 + value))
        return (value - auroc) ** 2 - z**2 * value * (1 - value) * spread / (n * m)

    margin = 1e-12  # 0 and 1 are roots themselves when `auroc` is 0 or 1: look for the other one
    low = brentq(excess, margin, min(auroc, 1 - margin)) if auroc > margin else 0.0
    high = brentq(excess, max(auroc, margin), 1 - margin) if auroc < 1 - margin else 1.0
    return float(low), float(high)


def _area_under_precision_recall(
    positive: NDArray[np.int64], negative: NDArray[np.int64], rule: Literal["step", "trapezoid"]
) -> float:
    """From counts at each distinct score, the most positive first."""
    found = positive.cumsum()
    precision = found / (found + negative.cumsum())
    gained = positive / found[-1]
    if rule == "step":
        return float((gained * precision).sum())
    before = np.append(1.0, precision[:-1])  # the curve starts at recall 0, precision 1
    return float((gained * (before + precision) / 2).sum())


def _false_accepted_share(ranks: _Ranks, tpr: float) -> tuple[float, NDArray[np.int64]]:
    """FPR at a TPR, and the number of unfamiliar inputs at or above each distinct score, from the highest."""
    if not 0 < tpr <= 1:
        raise InputError("tpr", f"is {tpr}", "Give a share above 0 and at most 1.")
    false_accepted = ranks.unfamiliar.cumsum()
    needed = smallest_count(tpr, ranks.n)
    return float(false_accepted[np.searchsorted(ranks.familiar.cumsum(), needed)] / ranks.m), false_accepted


def _fpr_interval(
    ranks: _Ranks, tpr: float, fpr: float, false_accepted: NDArray[np.int64], confidence: float
) -> Interval:
    # As many familiar scores as Binomial(N, tpr) lie above the threshold sought: it is between those of ranks
    # `above` and `above` + 1. 1001 quantiles stand for the law.
    above = binom.ppf((np.arange(1001) + 0.5) / 1001, ranks.n, tpr).astype(int)
    by_rank = np.concatenate([[0], np.repeat(false_accepted, ranks.familiar), [ranks.m]])

    def bound(count: NDArray[np.int64], level: float) -> float:
        count, weight = np.unique(count, return_counts=True)

        def excess(value: float) -> float:
            below = beta.cdf(value, count + 0.5, ranks.m - count + 0.5)
            return float(np.average(below, weights=weight) - level)

        return float(brentq(excess, 0.0, 1.0, xtol=1e-9))

    tail = _tail(confidence)
    low = 0.0 if fpr == 0 else min(bound(by_rank[above], tail), fpr)
    unbounded = fpr == 1 or (above == ranks.n).mean() > tail
    high = 1.0 if unbounded else max(bound(by_rank[above + 1], 1 - tail), fpr)
    return float(low), float(high)


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError("confidence", f"is {confidence}", "Give a level between 0 and 1, such as 0.95.")
    return (1 - confidence) / 2
