"""From raw scores to a ranking: z-scores within settings, means within tasks, means over tasks.

z-scores depend on the pool: another backbone changes everyone's. So raw values are what is stored, and every table
here is computed from them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t

from unseen.arena.measures import higher_is_better
from unseen.errors import InputError, nearest

KEY = ["backbone", "task", "setting", "metric", "seed"]
FEWEST = 3
"""Backbones in a setting, with fewer of which a z-score says nothing."""

Missing = Literal["error", "mean", "worst"]


def zscores(frame: pd.DataFrame, missing: Missing = "error") -> pd.DataFrame:
    """z-scores (backbones x settings; columns are task, setting, metric) of values averaged over seeds.

    z = (m - mean) / std over backbones, the population's std, with the sign that makes higher better.
    missing  what to put where a backbone lacks a setting: "error" raises, "mean" 0, "worst" the setting's lowest z
    Raises InputError for a setting with fewer than three backbones or without any difference, a cell that is
    missing, two rows of one key, values that are not finite, or a metric of unknown direction.
    """
    if missing not in ("error", "mean", "worst"):
        raise InputError("missing", f"is {missing!r}", "Choose 'error', 'mean' or 'worst'.")
    table, signs = _pivot(frame), {}
    for column in table.columns:
        found, name = table[column].dropna(), f"setting {' / '.join(column)!r}"
        if len(found) < FEWEST:
            problem = f"has {len(found)} backbone(s)"
            raise InputError(name, problem, f"A z-score needs {FEWEST} or more.")
        if np.ptp(found) <= 1e-12 * max(1.0, float(found.abs().max())):
            raise InputError(name, "is the same for all backbones", "Leave it out: it tells nothing.")
        signs[column] = 1 if _direction(frame, column) else -1
        if missing == "error":
            _require_whole(frame, column, list(table.index), name)
    z = pd.Series(signs) * (table - table.mean()) / table.std(ddof=0)
    return z.fillna(0.0) if missing == "mean" else z.fillna(z.min())


def _pivot(frame: pd.DataFrame) -> pd.DataFrame:
    """Values averaged over seeds: backbones x (task, setting, metric), in the order of the frame."""
    _check_frame(frame)
    values = frame.groupby(["task", "setting", "metric", "backbone"], sort=False).value.mean()
    table = values.unstack(["task", "setting", "metric"])  # type: ignore[call-overload]
    columns = frame[["task", "setting", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    return table.loc[list(dict.fromkeys(frame.backbone)), list(columns)]


def _require_whole(
    frame: pd.DataFrame, column: tuple[str, str, str], backbones: list[str], name: str
) -> None:
    """Every backbone must have every seed of a setting."""
    rows = frame[(frame.task == column[0]) & (frame.setting == column[1]) & (frame.metric == column[2])]
    seeds = set(rows.seed)
    for backbone in backbones:
        lacking = seeds - set(rows.seed[rows.backbone == backbone])
        if lacking:
            raise InputError(
                name,
                f"has no value of {backbone!r} for seed {', '.join(map(str, sorted(lacking)))}",
                "Run it, leave the backbone or the setting out, or choose missing='mean' or 'worst'.",
            )


def _by_seed(frame: pd.DataFrame, z: pd.DataFrame, weight: pd.Series) -> pd.DataFrame:
    """Overall score (backbones x seeds) of each seed's values, in units of the spread between backbones.

    The spread is that of values averaged over seeds, so that the mean over seeds is the score itself. What a seed
    did not measure is as in z.
    """
    spread = _pivot(frame).std(ddof=0)
    scores = {}
    for seed, part in frame.groupby("seed"):
        table = _pivot(part)
        signs = pd.Series({column: 1 if _direction(frame, column) else -1 for column in table.columns})
        of_seed = signs * (table - table.mean()) / spread[table.columns]
        scores[seed] = _by_task(of_seed.reindex(index=z.index, columns=z.columns).fillna(z)) @ weight
    return pd.DataFrame(scores)


def zscore_ranking(
    frame: pd.DataFrame,
    by: Literal["task", "overall"] = "overall",
    weights: Mapping[str, float] | None = None,
    missing: Missing = "error",
) -> pd.DataFrame:
    """Backbones from best to worst.

    by       "task": a column a task, the mean z of the backbone over the task's settings; "overall": also score,
             the mean over tasks, so that a task of many data sets does not dominate; low and high, its range over
             seeds; and rank, 1 for the best
    weights  what a task counts in the score, from 0; 1 where a task is not named
    Errors and `missing` as in `zscores`.
    """
    if by not in ("task", "overall"):
        raise InputError("by", f"is {by!r}", "Choose 'task' or 'overall'.")
    z = zscores(frame, missing)
    tasks = _by_task(z)
    weight = _weights(weights, list(tasks.columns))
    score = tasks @ weight
    order = score.sort_values(ascending=False, kind="stable").index
    if by == "task":
        return tasks.loc[order]
    each = _by_seed(frame, z, weight).loc[order]
    out = tasks.loc[order].assign(score=score, low=each.min(axis=1), high=each.max(axis=1))
    return out.assign(rank=out.score.rank(ascending=False, method="min").astype(int))


def task_correlation(frame: pd.DataFrame, missing: Missing = "error") -> pd.DataFrame:
    """Pearson correlation between tasks of the backbones' mean z. Errors as in `zscores`."""
    return _by_task(zscores(frame, missing)).corr()


def attribute_regression(
    frame: pd.DataFrame, factors: Sequence[str], missing: Missing = "error"
) -> pd.DataFrame:
    """Least squares of the overall score on attributes: which of them go with a high rank.

    factors  columns that are one value a backbone. Numbers above 0 that span more than tenfold enter as their
             log10, other numbers as they are; texts as one column a level against the first in the alphabet
    Gives a row a term: coefficient, standard error, t, p (two-sided), and r2 of the whole. An association among
    the backbones that took part, not a cause. Raises InputError when there are too few backbones for the terms,
    a term follows from others, or a backbone lacks a value.
    """
    score = zscore_ranking(frame, missing=missing).score
    about = _attributes(frame, factors).loc[score.index]
    columns: dict[str, Any] = {"intercept": np.ones(len(score))}
    for factor in factors:
        columns |= _terms(factor, about[factor])
    design, y = np.column_stack(list(columns.values())), score.to_numpy()
    freedom = len(y) - design.shape[1]
    if freedom < 1:
        problem = f"are {len(y)} for {design.shape[1]} terms"
        raise InputError("backbones", problem, "Name fewer factors, or compare more backbones.")
    if np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0)) < design.shape[1]:
        remedy = "Leave one of them out: among these backbones they cannot be told apart."
        raise InputError(f"factors {', '.join(factors)}", "determine each other", remedy)
    inverse = np.linalg.inv(design.T @ design)
    coefficient = inverse @ design.T @ y
    rest = y - design @ coefficient
    error = np.sqrt(np.diag(inverse) * (rest @ rest) / freedom)
    with np.errstate(divide="ignore"):
        statistic = coefficient / error
    return pd.DataFrame(
        {
            "coefficient": coefficient,
            "standard_error": error,
            "t": statistic,
            "p": 2 * t.sf(np.abs(statistic), freedom),
            "r2": 1 - rest @ rest / np.square(y - y.mean()).sum(),
        },
        index=pd.Index(list(columns), name="term"),
    )


@dataclass(frozen=True)
class Recommendation:
    """The backbone to take.

    best      its name;  table  the ranking of those that keep the constraints (z within the whole pool)
    close     those whose range over seeds overlaps the best one's: the data do not tell them apart
    excluded  name -> the constraint that it breaks
    """

    best: str
    table: pd.DataFrame
    close: list[str]
    excluded: dict[str, str]


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "=": operator.eq
}  # fmt: skip


def recommend(
    frame: pd.DataFrame,
    constraints: Mapping[str, str | Callable[[Any], bool]] | Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    missing: Missing = "error",
) -> Recommendation:
    """The best backbone by overall score among those that keep all constraints.

    constraints  {"params": "<30e6"}, {"params": lambda p: p < 30e6}, or ["params<30e6", "objective=supervised"]
    A backbone whose attribute is unknown does not keep a constraint on it. Raises InputError when none is left.
    """
    ranking = zscore_ranking(frame, weights=weights, missing=missing)
    rules = read_constraints(constraints)
    about = _attributes(frame, [name for name, _, _ in rules])
    excluded = {}
    for backbone in ranking.index:
        for name, text, keeps in rules:
            value = about.loc[backbone, name]
            if pd.isna(value) or not keeps(value):
                excluded[backbone] = f"{text} (it has {value})"
                break
    table = ranking.drop(index=list(excluded))
    if table.empty:
        told = "; ".join(f"{name}: {why}" for name, why in list(excluded.items())[:3])
        raise InputError("constraints", f"leave no backbone ({told})", "Loosen one.")
    best = str(table.index[0])
    close = [str(name) for name in table.index[1:] if table.high[name] >= table.low[best]]
    return Recommendation(best, table, close, excluded)


def read_constraints(constraints: Any) -> list[tuple[str, str, Callable[[Any], bool]]]:
    """(attribute, text, test) of each constraint; see `recommend`. Raises InputError for one that cannot be read."""
    if isinstance(constraints, Mapping):
        given = [(n, c if callable(c) else None, f"{n}{c}") for n, c in constraints.items()]
    else:
        given = [("", None, text) for text in constraints]
    rules = []
    for name, function, text in given:
        if function is not None:
            rules.append((name, f"the condition on {name}", function))
            continue
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>|=)\s*(\S.*?)\s*", text)
        if match is None:
            remedy = "Write an attribute, <, <=, >, >= or =, and a value, as in params<30e6."
            raise InputError(f"constraint {text!r}", "cannot be read", remedy)
        attribute, sign, bound = match.groups()
        rules.append((attribute, text.strip(), _test(text, sign, bound)))
    return rules


def _test(text: str, sign: str, bound: str) -> Callable[[Any], bool]:
    try:
        limit: float | str = float(bound)
    except ValueError:
        if sign != "=":
            problem = f"compares with {bound!r}, which is no number"
            raise InputError(f"constraint {text!r}", problem, "Write a number such as 30e6.") from None
        limit = bound

    def keeps(value: Any) -> bool:
        if isinstance(value, str) != isinstance(limit, str):
            raise InputError(f"constraint {text!r}", f"does not fit the attribute, as in {value!r}")
        return bool(_COMPARE[sign](value, limit))

    return keeps


def _by_task(table: pd.DataFrame) -> pd.DataFrame:
    """Mean z over the settings of each task, in the order of tasks."""
    tasks = list(dict.fromkeys(table.columns.get_level_values("task")))
    return pd.DataFrame({task: table[task].mean(axis=1) for task in tasks})


def _weights(weights: Mapping[str, float] | None, tasks: list[str]) -> pd.Series:
    for name, value in (weights or {}).items():
        if name not in tasks:
            raise InputError(f"weight of task {name!r}", "weighs no task", nearest(name, tasks))
        if not value >= 0:
            raise InputError(f"weight of task {name!r}", f"is {value}", "Give a number from 0.")
    found = pd.Series({task: float((weights or {}).get(task, 1.0)) for task in tasks})
    if not found.sum():
        raise InputError("weights", "are all 0", "Give one task a weight.")
    return found / found.sum()


def _check_frame(frame: pd.DataFrame) -> None:
    lacking = [name for name in [*KEY, "value"] if name not in frame]
    if lacking or frame.empty:
        problem = f"lacks the column {lacking[0]!r}" if lacking else "is empty"
        raise InputError("results frame", problem, f"It needs {', '.join([*KEY, 'value'])}.")
    twice = frame[frame.duplicated(KEY)]
    if len(twice):
        key = ", ".join(str(twice.iloc[0][name]) for name in KEY)
        raise InputError(f"run ({key})", "is in the results twice", "Keep one of the rows.")
    bad = frame[~np.isfinite(frame.value.astype(float))]
    if len(bad):
        raise InputError("results frame", f"has a value {bad.value.iloc[0]} of {bad.backbone.iloc[0]!r}")


def _direction(frame: pd.DataFrame, column: tuple[str, str, str]) -> bool:
    """Whether higher is better in a setting: as its rows declare, else as its metric does."""
    rows = frame[(frame.task == column[0]) & (frame.setting == column[1]) & (frame.metric == column[2])]
    if "higher_is_better" not in frame or rows.higher_is_better.isna().all():
        return higher_is_better(column[2])
    declared = rows.higher_is_better.unique()
    if len(declared) != 1 or declared[0] not in (True, False):
        problem = "is declared in two directions"
        raise InputError(f"metric {column[2]!r} of setting {column[1]!r}", problem, "Declare one.")
    return bool(declared[0])


def _attributes(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row a backbone, the named columns of the results."""
    for name in names:
        if name not in frame or name in (*KEY, "value", "higher_is_better", "chosen"):
            known = [c for c in frame if c not in (*KEY, "value", "higher_is_better", "chosen")]
            raise InputError(f"attribute {name!r}", "is not in the results", nearest(name, known))
    for name in names:
        if (frame.groupby("backbone")[name].nunique() > 1).any():
            raise InputError(f"attribute {name!r}", "varies within a backbone", "Give one value a backbone.")
    return frame.drop_duplicates("backbone").set_index("backbone")[list(names)]


def _terms(factor: str, values: pd.Series) -> dict[str, Any]:
    """Columns of the design for one attribute."""
    if values.isna().any():
        name = values.index[values.isna()][0]
        raise InputError(f"attribute {factor!r}", f"is unknown for backbone {name!r}", "Declare it.")
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=float)
        if numbers.min() > 0 and numbers.max() > 10 * numbers.min():
            return {f"log10({factor})": np.log10(numbers)}
        return {factor: numbers}
    levels = sorted(values.astype(str).unique())
    return {f"{factor}={level}": (values.astype(str) == level).to_numpy(dtype=float) for level in levels[1:]}
