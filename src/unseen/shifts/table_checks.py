"""What may be wrong with the columns of a table. `unseen.shifts.checks` reports it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.api import types

from unseen.shifts.coding import SHOWN, some
from unseen.shifts.findings import Finding, error, warning
from unseen.shifts.shift import Shift

ENOUGH_ROWS = 50
"""Rows below which a column may tell the label by chance."""
SAMPLED_ROWS = 20_000
"""Rows, at even distances, on which a column of numbers is tried as the only feature."""


def check_table(shift: Shift) -> Iterator[Finding]:
    """Findings about each column of a shift of kind "table"."""
    frame = shift.inputs
    missing: dict[str, int] = {}
    constant, identifying = [], []
    for name in frame.columns:
        values = frame[name]
        if unusable := _mixed(values) or _infinite(values):
            yield error(f"column {name!r}", *unusable)
            continue
        if word := _word_among_few_numbers(values):
            yield warning(f"column {name!r}", *word)
        if empty := int(values.isna().sum()):
            missing[name] = empty
        codes, distinct = pd.factorize(values)
        if len(distinct) <= 1 and (not empty or len(distinct) == 0):
            constant.append(name)
        elif _identifies_rows(values, len(distinct)):
            identifying.append(name)
        elif len(frame) >= ENOUGH_ROWS:
            if _tells_domain(codes, shift):
                yield warning(
                    f"column {name!r}",
                    "has one value for each domain",
                    "It names the domain and has no meaning in an unseen one: leave it out of the features.",
                )
            if _tells_label(values, codes, len(distinct), shift):
                yield warning(
                    f"column {name!r}",
                    "alone predicts the label almost perfectly",
                    "Is it known before the label is? If not, leave it out of the features.",
                )
    if missing:
        most = sorted(missing, key=missing.__getitem__, reverse=True)
        listed = ", ".join(f"{name!r} ({missing[name]})" for name in most[:SHOWN])
        more = f" and {len(most) - SHOWN} more columns" if len(most) > SHOWN else ""
        yield warning(
            "table",
            f"{sum(missing.values())} of {frame.size} cells are empty: {listed}{more}",
            "Numbers are imputed by the median of the training rows.",
        )
    if constant:
        yield warning("table", f"{len(constant)} column(s) never vary: {some(constant)}", "Leave them out.")
    if identifying:
        yield warning(
            "table",
            f"{len(identifying)} column(s) differ in every row, as identifiers do: {some(identifying)}",
            "Nothing can be learned from them: leave them out of the features.",
        )


def _mixed(values: pd.Series) -> tuple[str, str] | None:
    """Numbers and strings in one column; strings that write codes such as '3', '3a' and 'V27' are fine."""
    if types.is_numeric_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype):
        return None
    kind = types.infer_dtype(values, skipna=True)
    present = values.dropna()
    if kind not in ("string", "mixed", "mixed-integer") or present.empty:
        return None
    as_number = pd.to_numeric(present, errors="coerce")
    if kind == "string":
        words = present[as_number.isna()]
        placeholder = (
            0 < len(words) <= 0.2 * len(present) and words.nunique() <= 10 and as_number.nunique() > 20
        )
        if not placeholder:
            return None
        numbers = present[as_number.notna()]
    else:
        is_number = present.map(lambda value: isinstance(value, (int, float, np.number)))
        words, numbers = present[~is_number], present[is_number]
        if numbers.empty:
            return f"holds objects such as {words.iloc[0]!r}", "Give numbers, strings or dates."
    return (
        f"mixes {len(numbers)} numbers ({numbers.iloc[0]!r}, ...) with {len(words)} other values "
        f"({words.iloc[0]!r} in row {words.index[0]})",
        "Leave cells without a number empty; a column of categories should not be numbers.",
    )


def _word_among_few_numbers(values: pd.Series) -> tuple[str, str] | None:
    """Counts or grades with a rare word such as 'unknown': categories as they stand, which may be no intention."""
    if types.infer_dtype(values, skipna=True) != "string" or isinstance(values.dtype, pd.CategoricalDtype):
        return None
    present = values.dropna()
    as_number = pd.to_numeric(present, errors="coerce")
    words = present[as_number.isna()]
    rare = 0 < len(words) <= 0.05 * len(present) and as_number.nunique() >= 3
    if not rare or words.str.contains(r"\d").any():  # codes such as '3a'
        return None
    return (
        f"is read as categories, because {words.iloc[0]!r} (row {words.index[0]}) stands among numbers",
        "If they are quantities, leave that cell empty.",
    )


def _infinite(values: pd.Series) -> tuple[str, str] | None:
    if types.infer_dtype(values, skipna=True) not in ("floating", "mixed-integer-float"):
        return None
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
    infinite = np.isinf(numbers)
    if not infinite.any():
        return None
    return (
        f"has {infinite.sum()} infinite value(s), the first in row {infinite.argmax()}",
        "Replace them by numbers or leave the cells empty.",
    )


def _identifies_rows(values: pd.Series, distinct: int) -> bool:
    """All strings differ, or whole numbers count the rows."""
    if distinct < len(values) or len(values) < 20:
        return False
    if types.is_integer_dtype(values):
        return int(values.max()) - int(values.min()) == len(values) - 1
    return not types.is_numeric_dtype(values) and not types.is_datetime64_any_dtype(values)


def _tells_domain(codes: np.ndarray, shift: Shift) -> bool:
    """Whether values and domains correspond one to one, in every row."""
    domain = shift.domain.numpy()
    domains = len(np.unique(domain))
    if domains < 2 or codes.min() < 0 or codes.max() + 1 != domains:
        return False
    return len(np.unique(codes * len(shift.domains) + domain)) == domains


def _tells_label(values: pd.Series, codes: np.ndarray, distinct: int, shift: Shift) -> bool:
    """Whether the best rule on this column alone errs in at most 1 of 1000 rows and 1 of 50 minority rows."""
    classes = len(shift.classes)
    labels = shift.labels.numpy()
    rows = len(labels)
    if classes > rows / 5:
        return False
    if distinct <= rows / 5:  # at least five rows a value: predict its most frequent label
        table = np.bincount((codes + 1) * classes + labels, minlength=(distinct + 1) * classes)
        right = table.reshape(-1, classes).max(axis=1).sum()
    elif types.is_numeric_dtype(values):
        from sklearn.tree import DecisionTreeClassifier

        some_rows = np.unique(np.linspace(0, rows - 1, min(rows, SAMPLED_ROWS)).astype(int))
        labels, rows = labels[some_rows], len(some_rows)
        # Ranks split as the values do, and fit the tree's 32-bit floats.
        column = values.iloc[some_rows].rank().to_numpy(float, na_value=np.nan)[:, None]
        tree = DecisionTreeClassifier(max_leaf_nodes=max(4, 2 * classes), random_state=0)
        right = (tree.fit(column, labels).predict(column) == labels).sum()
    else:
        return False
    wrong, minority = rows - right, rows - np.bincount(labels).max()
    return bool(minority > 0 and wrong <= rows / 1000 and wrong <= minority / 50)
