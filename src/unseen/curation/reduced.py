"""The chosen part of a data set, written in the form in which the whole came."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts import Shift
from unseen.shifts.arrays import open_npz
from unseen.shifts.shift import take
from unseen.shifts.tables import TEXT_ENDINGS, read_table, separator

BY_ROW = ("x", "y", "domain", "group", "weight", "time", "ids")
"""Arrays of an .npz file with a row an example; the others are names."""


def write_reduced(shift: Shift, rows: Tensor, source: str, folder: Path) -> Path | None:
    """Write the examples `rows` of a shift that was opened from `source` into a folder.

    None, and nothing is written, for folders of images, graphs and several modalities.
    Tables keep all their columns, texts of CSV files letter by letter; .npz files all their arrays. Built-in data
    become tables or .npz files that `open_shift` reads.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return None
    if path.suffix.lower() == ".npz":
        return _npz(path, shift, rows, folder / path.name)
    if path.exists():
        return _table(path, shift, rows, folder / path.name)
    return _builtin(shift, rows, folder)


def _table(path: Path, shift: Shift, rows: Tensor, out: Path) -> Path:
    ids = pd.Index(list(shift.ids or range(len(shift))))[rows.numpy()]
    name = path.name.lower()
    if name.endswith(TEXT_ENDINGS):
        mark = separator(path)
        frame = pd.read_csv(path, sep=mark, skipinitialspace=True, dtype=str, keep_default_na=False)
        chosen = frame.iloc[ids]
        return _written(out, lambda part: chosen.to_csv(part, sep=mark, index=False))
    frame = read_table(path)
    chosen = frame.iloc[ids] if isinstance(frame.index, pd.RangeIndex) else frame[frame.index.isin(ids)]
    if name.endswith((".parquet", ".pq")):
        keep_index = not isinstance(frame.index, pd.RangeIndex)
        return _written(out, lambda part: chosen.to_parquet(part, index=keep_index))
    return _written(out, lambda part: chosen.reset_index(drop=True).to_feather(part))


def _npz(path: Path, shift: Shift, rows: Tensor, out: Path) -> Path:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    whole = np.arange(len(arrays["x"]))
    if len(whole) != len(shift):  # rows without a label or domain were left out when it was opened
        whole = np.flatnonzero(np.isin(arrays.get("ids", whole), np.asarray(list(shift.ids or ()))))
    chosen = {
        name: values[whole[rows.numpy()]] if name in BY_ROW else values for name, values in arrays.items()
    }
    return _written(out, lambda part: _savez(part, chosen))


def _builtin(shift: Shift, rows: Tensor, folder: Path) -> Path | None:
    part = take(shift.inputs, rows)
    names: dict[str, Any] = {
        "label": np.array(shift.classes)[shift.labels[rows].numpy()],
        "domain": np.array(shift.domains)[shift.domain[rows].numpy()],
    }
    if shift.kind == "table":
        frame = part.reset_index(drop=True).assign(**names)
        return _written(folder / "data.csv", lambda path: frame.to_csv(path, index=False))
    if shift.kind not in ("array", "image", "text"):
        return None
    arrays = {"x": np.asarray(part), "y": names["label"], "domain": names["domain"]}
    arrays["ids"] = np.array([str(shift.ids[row]) if shift.ids else str(row) for row in rows.tolist()])
    path = _written(folder / "data.npz", lambda path: _savez(path, arrays))
    open_npz(path)  # what was written can be read
    return path


def _savez(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # by name, numpy would add an ending
        np.savez(file, **arrays)


def _written(path: Path, write: Callable[[Path], Any]) -> Path:
    """Whole or not at all: written beside, and then moved."""
    part = path.with_name(f".part-{path.name}")  # the ending stays, as it may ask for compression
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"file {str(path)!r}", f"cannot be written ({error})", "Choose another folder."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def write_ids(table: pd.DataFrame, path: Path) -> Path:
    """A table as CSV, whole or not at all."""
    return _written(path, lambda part: table.to_csv(part, index=False))
