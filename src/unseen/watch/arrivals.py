"""Inputs in their order of arrival, cut into chunks: the rows of a table or an array, the images of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.errors import InputError, nearest
from unseen.shifts.coding import sortable
from unseen.shifts.image_folders import ImageFiles
from unseen.shifts.new_inputs import open_inputs
from unseen.shifts.preprocessing import Preprocessing, TablePreprocessing
from unseen.shifts.tables import read_table

MODIFIED = "modified"
"""Name of the time that files have by themselves."""
LEAST = 10
"""Examples of a chunk: with fewer, hardly any drift could be told from chance."""


@dataclass(frozen=True)
class Arrivals:
    """inputs  raw inputs for a model, in the order of arrival
    names   of each: row number or file name
    """

    inputs: Any
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def chunks(self, size: int) -> Iterator[tuple[Any, list[str]]]:
        """Inputs and names, `size` at a time. A rest of less than half of that joins the chunk before."""
        if size < LEAST:
            raise InputError("chunk", f"is {size}", f"Give {LEAST} examples at least, better 100.")
        starts = list(range(0, len(self), size))
        if len(starts) > 1 and len(self) - starts[-1] < size / 2:
            starts.pop()
        for start, end in zip(starts, [*starts[1:], len(self)], strict=True):
            yield _part(self.inputs, start, end), self.names[start:end]


def open_arrivals(
    source: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    time: str | None = None,
    text: str | None = None,
    skip_bad: bool = False,
) -> Arrivals:
    """Open what has arrived so far.

    source  a table, an .npz file with x, or a folder of images (files are taken in the order of their names)
    time    column of a table, or array of an .npz file, whose order is checked; "modified" for a folder, whose files
            are then taken in the order of their modification times
    Other arguments as for `open_inputs`. Raises InputError for what it does, and where the times go back.
    """
    inputs, names = open_inputs(source, preprocessing, text, skip_bad=skip_bad)
    if time is None:
        return Arrivals(inputs, names)
    path = Path(source).expanduser()
    if isinstance(inputs, ImageFiles):
        if time != MODIFIED:
            remedy = (
                f"Files have --time {MODIFIED}; without --time they are taken in the order of their names."
            )
            raise InputError(f"time {time!r}", "is not known of images", remedy)
        order = np.argsort([(inputs.folder / name).stat().st_mtime_ns for name in names], kind="stable")
        return Arrivals(inputs.select(torch.from_numpy(order)), [names[row] for row in order])
    _check_order(_times(path, time, len(names)), time, names)
    if isinstance(preprocessing, TablePreprocessing) and time not in preprocessing.names:
        inputs = inputs.drop(columns=time)
    return Arrivals(inputs, names)


def _times(path: Path, name: str, rows: int) -> np.ndarray:
    subject = f"time {name!r}"
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if name not in arrays:
                raise InputError(subject, f"is not in {str(path)!r}", nearest(name, arrays))
            values = arrays[name]
        if values.shape != (rows,):
            raise InputError(
                subject, f"has shape {values.shape}", f"Give one for each of the {rows} rows of x."
            )
        return sortable(values, subject)
    frame = read_table(path)
    columns = {str(column): column for column in frame.columns}
    if name not in columns:
        raise InputError(subject, f"is not in {str(path)!r}", nearest(name, columns))
    return sortable(frame[columns[name]], subject)


def _check_order(times: np.ndarray, name: str, names: list[str]) -> None:
    missing = np.flatnonzero(pd.isna(times))
    if len(missing):
        raise InputError(
            f"time {name!r}", f"is missing in row {names[missing[0]]}", "Fill it, or leave the row out."
        )
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise InputError(
            f"time {name!r}",
            f"goes back at row {names[row]}: {times[row]} comes after {times[row - 1]}",
            "Sort the stream by time: what comes later must not be judged before.",
        )


def _part(inputs: Any, start: int, end: int) -> Any:
    if isinstance(inputs, pd.DataFrame):
        return inputs.iloc[start:end]
    return inputs.select(torch.arange(start, end)) if isinstance(inputs, ImageFiles) else inputs[start:end]
