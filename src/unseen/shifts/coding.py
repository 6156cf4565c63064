"""From the labels and domain names that people write to numbers, and what to do where they are missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning

SHOWN = 5
"""How many rows, columns or names a message lists."""


def encode(values: Any, subject: str, names: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers (N,) int64 and the names that they stand for, sorted as strings.

    values  N strings, booleans, integers, whole floats (1.0 is named "1") or dates, none of them missing
    names   what integers in `values` stand for, or the order of the names in `values`

    Raises `InputError` for a measured quantity (regression is not supported) and for an unknown name.
    """
    series = pd.Series(values).reset_index(drop=True)
    codes, found = pd.factorize(series)
    if names is not None:
        names = tuple(str(name) for name in names)
        if pd.api.types.is_integer_dtype(series):
            return torch.from_numpy(np.array(series, dtype=np.int64)), names
    elif _is_continuous(found, len(series)):
        raise InputError(
            subject,
            f"has {len(found)} different numbers in {len(series)} rows, such as "
            f"{', '.join(map(_name, found[:3]))}: it looks like a measured quantity",
            "Cut it into a few ranges (pandas.cut) and name that column. Regression is not supported.",
        )
    written = [_name(value) for value in found]
    order = tuple(sorted(set(written))) if names is None else names
    unknown = sorted(set(written) - set(order))
    if unknown:
        raise InputError(subject, f"holds {unknown[0]!r}", f"The names given are: {', '.join(order)}.")
    number = {name: index for index, name in enumerate(order)}
    codes_of_found = torch.tensor([number[name] for name in written], dtype=torch.int64)
    return codes_of_found[torch.from_numpy(codes)], order


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def _is_continuous(found: Any, rows: int) -> bool:
    """Many different numbers, of which some are not whole or almost every one occurs once or twice."""
    if not pd.api.types.is_numeric_dtype(found) or pd.api.types.is_bool_dtype(found) or len(found) <= 20:
        return False
    return bool((np.asarray(found, dtype=float) % 1 != 0).any()) or len(found) > rows / 2


def is_missing(values: pd.Series) -> np.ndarray:
    """(N,) bool: NaN, None, NaT and blank strings."""
    missing = values.isna().to_numpy()
    if pd.api.types.is_string_dtype(values) or values.dtype == object:
        missing = missing | (values.astype(str).str.strip() == "").to_numpy()
    return missing


def complete_rows(columns: Mapping[str, pd.Series], skip_bad: bool) -> np.ndarray:
    """Row numbers in which every column has a value.

    columns   what messages call a column, and its N values
    skip_bad  leave incomplete rows out and warn with their count, instead of raising `InputError`
    """
    bad = np.zeros(len(next(iter(columns.values()))), dtype=bool)
    for subject, values in columns.items():
        missing = is_missing(values)
        if missing.any() and not skip_bad:
            raise InputError(
                subject,
                f"is missing in {missing.sum()} of {len(missing)} rows ({first_rows(missing)})",
                "Fill them in, or leave such rows out with skip_bad=True (--skip-bad). In files, cells such as NA, "
                "None, null and nan count as missing: write them otherwise if they are names.",
            )
        bad |= missing
    if bad.all():
        raise InputError(" and ".join(columns), "are missing in every row", "Name other columns.")
    if bad.any():
        warnings.warn(
            f"{bad.sum()} of {len(bad)} rows lack {' or '.join(columns)} and were left out "
            f"({first_rows(bad)})",
            UnseenWarning,
            stacklevel=3,
        )
    return np.flatnonzero(~bad)


def first_rows(mask: np.ndarray) -> str:
    """The first rows that a mask names, in words."""
    rows = np.flatnonzero(mask)
    listed = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return f"row{'s' if len(rows) > 1 else ''} {listed}, counting from 0"


def some(names: Sequence[Any]) -> str:
    """The first few names, quoted, and how many more there are."""
    listed = ", ".join(repr(str(name)) for name in names[:SHOWN])
    return listed + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def sortable(values: Any, subject: str) -> np.ndarray:
    """Times as numbers or as datetime64[ns] in UTC; strings must be dates that pandas can read."""
    series = pd.Series(values)
    if pd.api.types.is_numeric_dtype(series):
        return series.to_numpy()
    try:
        times = pd.to_datetime(series, utc=True)
    except (ValueError, TypeError) as error:
        remedy = "Write numbers, or dates such as 2024-12-31."
        raise InputError(subject, f"holds a time that cannot be read ({error})", remedy) from None
    return times.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
