"""Tables: a file or a data frame with a label column and a domain column."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from unseen.errors import InputError, nearest
from unseen.shifts.coding import complete_rows, encode, sortable
from unseen.shifts.shift import Shift

TEXT_ENDINGS = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz")
BINARY_ENDINGS = (".parquet", ".pq", ".feather", ".arrow")
TABLE_ENDINGS = TEXT_ENDINGS + BINARY_ENDINGS


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV, TSV, Parquet or Feather file as a data frame.

    The separator of a text file is the most frequent of comma, semicolon and tab in its first line.
    Raises `InputError` when the file is empty, cannot be read, or has another ending.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if name.endswith(TEXT_ENDINGS):
            frame = pd.read_csv(path, sep=separator(path), skipinitialspace=True, low_memory=False)
        elif name.endswith((".parquet", ".pq")):
            frame = pd.read_parquet(path)
        elif name.endswith(BINARY_ENDINGS):
            frame = pd.read_feather(path)
        else:
            raise InputError(
                f"file {str(path)!r}",
                f"ends in {path.suffix!r}",
                f"Tables end in {', '.join(TABLE_ENDINGS)}; arrays in .npz.",
            )
    except UnicodeDecodeError:
        raise InputError(f"file {str(path)!r}", "is not UTF-8 text", "Save it again as UTF-8.") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"file {str(path)!r}", "is empty", "Give a header line and rows.") from None
    except (pd.errors.ParserError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = f"cannot be read ({str(error).strip()})"
        raise InputError(f"file {str(path)!r}", problem, "Save it again.") from None
    if frame.empty:
        raise InputError(f"file {str(path)!r}", "has no rows", "Give a header line and rows.")
    return frame


def separator(path: Path) -> str:
    """The mark between the columns of a text table: the one of comma, semicolon and tab that its header has most of."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        header = file.readline()
    return max(",;\t", key=header.count)


def from_dataframe(
    frame: pd.DataFrame,
    label: str,
    domain: str,
    *,
    group: str | None = None,
    weight: str | None = None,
    time: str | None = None,
    text: str | None = None,
    features: Sequence[str] | None = None,
    skip_bad: bool = False,
    name: str = "table",
    source: dict[str, Any] | None = None,
) -> Shift:
    """A shift from a data frame: kind "table", or "text" when `text` names the column to learn from.

    label     column of the classes: strings, booleans or whole numbers
    domain    column of the domains
    group     column of a further attribute for worst-group metrics
    weight    column of numbers from 0: what each example counts in training
    time      column of numbers or dates, for `shift.split(after=...)`
    features  columns to learn from; None takes all but label, domain, group, weight, time
    skip_bad  leave rows without label, domain, group, weight, time or text out, with a warning, instead of raising

    Raises `InputError` for a column that is not there, missing values, or a label to regress on.
    """
    columns = [str(column) for column in frame.columns]
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise InputError(f"column {repeated[0]!r}", "occurs more than once", "Name every column once.")
    frame = frame.set_axis(columns, axis=1)
    given = {"label": label, "domain": domain, "group": group, "weight": weight, "time": time, "text": text}
    roles = {role: column for role, column in given.items() if column is not None}
    features = [features] if isinstance(features, str) else features
    for role, column in [*roles.items(), *(("feature", column) for column in features or ())]:
        if column not in columns:
            raise InputError(f"{role} column {column!r}", f"is not in {name!r}", nearest(column, columns))
    if label == domain:
        raise InputError(f"column {label!r}", "is both label and domain", "Name two columns.")
    if label in (text, group, weight, time, *(features or ())):
        raise InputError(f"label column {label!r}", "has another role as well", "Give it one.")
    if text is not None and features is not None:
        raise InputError("features", f"were given beside the text column {text!r}", "Give one or the other.")

    needed = {f"{role} column {column!r}": frame[column] for role, column in roles.items()}
    rows = complete_rows(needed, skip_bad)
    ids = rows if isinstance(frame.index, pd.RangeIndex) else frame.index.to_numpy()[rows]
    frame = frame.iloc[rows].reset_index(drop=True)
    labels, classes = encode(frame[label], f"label column {label!r}")
    domains, domain_names = encode(frame[domain], f"domain column {domain!r}")
    groups, group_names = (None, ()) if group is None else encode(frame[group], f"group column {group!r}")
    if text is None:
        inputs: Any = frame[list(features) if features else [c for c in columns if c not in roles.values()]]
        if inputs.shape[1] == 0:
            raise InputError(f"table {name!r}", "has no column to learn from", "Name features.")
    else:
        inputs = frame[text].astype(str).tolist()
    return Shift(
        name=name,
        kind="table" if text is None else "text",
        inputs=inputs,
        labels=labels,
        domain=domains,
        classes=classes,
        domains=domain_names,
        ids=ids.tolist(),
        group=groups,
        groups=group_names,
        weight=None if weight is None else pd.to_numeric(frame[weight], errors="coerce").to_numpy(),
        time=None if time is None else sortable(frame[time], f"time column {time!r}"),
        source=source or {},
    )
