"""Intervals and tests for the numbers of a study: over seeds, over examples, and over both at once.

Arguments are NumPy arrays, tensors or lists. Undefined bounds (one seed only) are NaN, never a made-up zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, norm, spearmanr, t

from unseen.errors import InputError
from unseen.measures.accuracy_line import Scaling, accuracy_line
from unseen.measures.arrays import as_array, as_correct, as_numbers, same_length


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `low` and `high` are NaN where the data define none."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Any, confidence: float = 0.95) -> Interval:
    """Mean of `values` (S,), one number a seed, with Student's t interval; NaN bounds for a single value.

    Speaks of new seeds on the *same* test examples. Raises InputError for no values or NaN.
    """
    values = as_numbers("values", values)
    seeds = len(values)
    if seeds == 1:
        return Interval(float(values[0]), np.nan, np.nan)
    half = t.isf(_tail(confidence), seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def proportion_interval(successes: float, examples: int, confidence: float = 0.95) -> Interval:
    """Share of `successes` among `examples` with Wilson's score interval (1927), sound at 0 and 1 too."""
    if examples < 1 or not 0 <= successes <= examples:
        raise InputError(
            "successes, examples",
            f"are {successes}, {examples}",
            "Give 0 <= successes <= examples and examples >= 1.",
        )
    return _wilson(successes / examples, examples, norm.isf(_tail(confidence)))


def accuracy_interval(correct: Any, confidence: float = 0.95) -> Interval:
    """Accuracy over seeds *and* examples: what another seed on other examples would give on average.

    `correct` (S, N): is example n right under seed s (booleans, 0/1, or shares in [0, 1])? Every seed must
    have seen the same examples in the same order. The two are crossed random effects: the variance of the
    mean is that of seeds / S + of examples / N + of the rest / (S N), estimated by the mean squares of the
    two-way table (Satterthwaite's degrees of freedom). The bounds are Wilson's at the number of independent
    examples that would have this variance (Korn & Graubard, Survey Methodology 1998), so they stay inside
    [0, 1].

    With S = 1 nothing is known of seeds: it is Wilson's interval over examples. Few seeds that differ much
    give a wide interval; with only two it still holds less often than it says (88 % for 95 % in
    simulation). Raises InputError for values outside [0, 1], NaN or empty input.
    """
    correct = as_correct("correct", correct, 2)
    seeds, examples = correct.shape
    accuracy = float(correct.mean())
    if seeds == 1 or examples == 1 or accuracy in (0.0, 1.0):
        return _wilson(accuracy, examples, norm.isf(_tail(confidence)))
    variance, freedom = _variance_of_mean(correct)
    if variance == 0:  # shares that are all alike
        return _wilson(accuracy, examples, norm.isf(_tail(confidence)))
    effective = accuracy * (1 - accuracy) / variance
    return _wilson(accuracy, effective, t.isf(_tail(confidence), freedom))


@dataclass(frozen=True)
class Comparison:
    """`difference` is a - b, with confidence interval and two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_comparison(a: Any, b: Any, confidence: float = 0.95) -> Comparison:
    """Difference between two learners that share seeds, or seeds and examples.

    `a`, `b`: (S,) one number a seed, a paired t test; or (S, N) one a seed and example, the t test of
    `accuracy_interval`'s two-way variance on a - b, so that the claim reaches beyond these seeds and these
    examples; (1, N) compares two fixed models over examples. A sign-flip test is not used: with S seeds its
    p-value cannot fall below 2^(1 - S), which is 0.25 for three seeds.

    Without any variation of a - b there is no test: p is 1 if the difference is 0, else NaN, as are the
    bounds. Raises InputError for shapes that differ, NaN, empty input, or a single pair.
    """
    shape = as_array(a).shape
    if as_array(b).shape != shape or len(shape) not in (1, 2):
        raise InputError(
            "a, b",
            f"have shapes {shape} and {as_array(b).shape}",
            "Give both as (seeds,) or (seeds, examples).",
        )
    pairs = as_numbers("a", a, len(shape)) - as_numbers("b", b, len(shape))
    if pairs.size == 1:
        raise InputError("a, b", "hold a single pair", "Give two seeds or two examples at least.")
    difference = float(pairs.mean())
    variance, freedom = _variance_of_mean(pairs if pairs.ndim == 2 else pairs[:, None])
    if variance == 0:
        known = 0.0 if difference == 0 else np.nan
        return Comparison(difference, known, known, 1.0 if difference == 0 else np.nan)
    error = np.sqrt(variance)
    half = t.isf(_tail(confidence), freedom) * error
    p_value = 2 * t.sf(abs(difference) / error, freedom)
    return Comparison(difference, float(difference - half), float(difference + half), float(p_value))


@dataclass(frozen=True)
class WorstGroup:
    """The group of lowest accuracy, its accuracy with interval, and how many examples it has."""

    group: Any
    accuracy: float
    low: float
    high: float
    count: int


def worst_group(correct: Any, group: Any, confidence: float = 0.95) -> WorstGroup:
    """Group of `group` (N,) with the lowest accuracy in `correct`, (N,) or (S, N) over seeds.

    Averages over seeds before it takes the worst. The interval is Wilson's, or `accuracy_interval`'s for
    several seeds, of that group alone: choosing the lowest of many small groups biases the accuracy
    downwards, so read it with `count`. Of equally bad groups the larger is named. Raises InputError for
    lengths that differ.
    """
    correct = as_correct("correct", correct, 2 if as_array(correct).ndim == 2 else 1)
    correct = np.atleast_2d(correct)
    group = as_array(group)
    same_length("group", group, "correct", correct.shape[1])
    names, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    accuracies = np.bincount(index, correct.mean(0)) / counts
    worst = np.lexsort((-counts, accuracies))[0]
    interval = accuracy_interval(correct[:, index == worst], confidence)
    return WorstGroup(
        names.tolist()[worst], interval.estimate, interval.low, interval.high, int(counts[worst])
    )


def effective_robustness(
    id_accuracy: Any,
    ood_accuracy: Any,
    reference_id: Any,
    reference_ood: Any,
    scaling: Scaling = "logit",
) -> NDArray[np.float64]:
    """OOD accuracy above that of reference models of the same ID accuracy (Taori et al., NeurIPS 2020).

    A line is fitted to the references' OOD on ID accuracy, see `accuracy_line`. `id_accuracy`, `ood_accuracy`:
    scalars or (K,) models to judge; `reference_*`: (R,) models trained the ordinary way. Returns (K,) or a 0-d
    array, in (-1, 1).
    """
    judged = as_correct("ood_accuracy", np.atleast_1d(as_array(ood_accuracy)))
    names = "reference_id", "reference_ood"
    line = accuracy_line(reference_id, reference_ood, scaling, resamples=0, names=names)
    expected = line.expected(np.atleast_1d(as_array(id_accuracy)))
    same_length("ood_accuracy", judged, "id_accuracy", len(expected))
    return (judged - expected).reshape(np.shape(as_array(id_accuracy)))


def rank_correlation(
    x: Any,
    y: Any,
    method: Literal["spearman", "kendall"] = "spearman",
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Spearman's rho or Kendall's tau-b of `x`, `y` (K,), with a percentile bootstrap interval over pairs.

    Resamples in which a variable is constant are left out. NaN bounds for fewer than four pairs; NaN
    throughout when `x` or `y` is constant. Raises InputError for lengths that differ, NaN or empty input.
    """
    x, y = as_numbers("x", x), as_numbers("y", y)
    same_length("y", y, "x", len(x))
    if method not in ("spearman", "kendall"):
        raise InputError("method", f"is {method!r}", "Give 'spearman' or 'kendall'.")
    correlation = spearmanr if method == "spearman" else kendalltau
    tail = _tail(confidence)
    if _constant(x) or _constant(y):
        return Interval(np.nan, np.nan, np.nan)
    estimate = float(correlation(x, y).statistic)
    if len(x) < 4:
        return Interval(estimate, np.nan, np.nan)
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    values = [
        correlation(x[draw], y[draw]).statistic
        for draw in draws
        if not (_constant(x[draw]) or _constant(y[draw]))
    ]
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def holm(p_values: Any) -> NDArray[np.float64]:
    """Adjusted p-values of several tests, (K,): reject those <= alpha to err at all with chance <= alpha.

    Holm, Scandinavian Journal of Statistics 1979: valid under any dependence, uniformly stronger than
    Bonferroni. Raises InputError for values outside [0, 1].
    """
    p_values = as_correct("p_values", p_values)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _wilson(share: float, examples: float, z: float) -> Interval:
    """Wilson's interval for a possibly fractional number of examples; `z` is the normal or t quantile."""
    centre = (share + z**2 / (2 * examples)) / (1 + z**2 / examples)
    half = z / (1 + z**2 / examples) * np.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
    # rounding must not push a bound past 0, 1 or the estimate itself
    return Interval(share, float(min(max(centre - half, 0), share)), float(max(min(centre + half, 1), share)))


def _variance_of_mean(table: NDArray[np.float64]) -> tuple[float, float]:
    """Variance of the grand mean of crossed random effects (S, N), and Satterthwaite's degrees of freedom.

    E[MS of rows] = rest + N rows, E[MS of columns] = rest + S columns, E[MS of rest] = rest: their
    combination (rows + columns - rest) / (S N) is unbiased. It may come out below what rows or columns
    alone show, or even negative; then the larger of these stands. With one row, or one column, the other
    direction is all there is.
    """
    seeds, examples = table.shape
    rows, columns = table.mean(1), table.mean(0)
    if seeds == 1 or examples == 1:
        line = columns if seeds == 1 else rows
        return (0.0, np.nan) if _constant(line) else (float(line.var(ddof=1)) / len(line), len(line) - 1)
    rest = table - rows[:, None] - columns + table.mean()
    of_rows, of_columns = examples * rows.var(ddof=1), seeds * columns.var(ddof=1)
    of_rest = (rest**2).sum() / ((seeds - 1) * (examples - 1))
    combined = of_rows + of_columns - of_rest
    larger, freedom = max((of_rows, seeds - 1), (of_columns, examples - 1))
    if larger < 1e-20:
        return 0.0, np.nan
    if combined <= larger:
        return larger / (seeds * examples), freedom
    spread = of_rows**2 / (seeds - 1) + of_columns**2 / (examples - 1)
    spread += of_rest**2 / ((seeds - 1) * (examples - 1))
    return combined / (seeds * examples), combined**2 / spread


def _constant(values: NDArray[np.float64]) -> bool:
    return bool((values == values[0]).all())


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError("confidence", f"is {confidence}", "Give a level between 0 and 1, such as 0.95.")
    return (1 - confidence) / 2
