"""Arrays in memory or in an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.shifts.coding import complete_rows, encode, sortable
from unseen.shifts.shift import Kind, Shift, take


def from_arrays(
    x: Any,
    y: Any,
    domain: Any,
    *,
    group: Any = None,
    weight: Any = None,
    time: Any = None,
    ids: Any = None,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    skip_bad: bool = False,
    name: str = "arrays",
    source: dict[str, Any] | None = None,
) -> Shift:
    """A shift from arrays, tensors or lists of N rows each.

    x         numbers (N, ...) -> kind "array", float32. uint8 of shape (N, H, W), (N, H, W, C) or
              (N, C, H, W) with 1 to 4 channels -> kind "image". N strings -> kind "text"
    y         (N,) class names or numbers
    domain    (N,) domain names or numbers
    group     (N,) names or numbers of a further attribute
    weight    (N,) numbers from 0: what each example counts in training
    time      (N,) numbers or dates
    ids       (N,) stable names of the examples; None takes the row numbers
    classes   names that the numbers in y stand for; `domains` likewise
    skip_bad  leave rows with a missing y, domain, group, weight or time out, with a warning, instead of raising

    Raises `InputError` for shapes that do not fit, missing values, or a label to regress on.
    """
    kind, inputs = _inputs(x)
    columns = {
        part: _column(values, part, len(inputs))
        for part, values in (
            ("y", y),
            ("domain", domain),
            ("group", group),
            ("weight", weight),
            ("time", time),
        )
        if values is not None
    }
    names = np.arange(len(inputs)) if ids is None else _column(ids, "ids", len(inputs)).to_numpy()
    rows = complete_rows(columns, skip_bad)
    if len(rows) < len(inputs):
        inputs = take(inputs, torch.from_numpy(rows))
        columns = {part: values.iloc[rows] for part, values in columns.items()}
    labels, class_names = encode(columns["y"], "y", classes)
    domain_codes, domain_names = encode(columns["domain"], "domain", domains)
    groups, group_names = (None, ()) if group is None else encode(columns["group"], "group")
    return Shift(
        name=name,
        kind=kind,
        inputs=inputs,
        labels=labels,
        domain=domain_codes,
        classes=class_names,
        domains=domain_names,
        ids=names[rows].tolist(),
        group=groups,
        groups=group_names,
        weight=None if weight is None else pd.to_numeric(columns["weight"], errors="coerce").to_numpy(),
        time=None if time is None else sortable(columns["time"], "time"),
        source=source or {},
    )


def open_npz(path: str | Path, *, skip_bad: bool = False, source: dict[str, Any] | None = None) -> Shift:
    """A shift from an .npz file with x, y, domain and, if they are there, group, weight, time, ids, classes, domains.

    The arrays mean what they mean to `from_arrays`. Arrays of Python objects are refused: reading them would
    run code that the file brings (pickle).
    """
    path = Path(path)
    known = ("x", "y", "domain", "group", "weight", "time", "ids", "classes", "domains")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            for needed in known[:3]:
                if needed not in names:
                    raise InputError(f"array {needed!r}", f"is not in {path.name!r}", nearest(needed, names))
            arrays = {part: file[part] for part in known if part in names}
    except InputError:
        raise
    except Exception as error:  # broken zip and .npy files raise many types
        remedy = "Save it with numpy.savez, with numbers or with strings (array.astype(str)), no objects."
        raise InputError(f"file {str(path)!r}", f"cannot be read as .npz ({error})", remedy) from error
    return from_arrays(**arrays, skip_bad=skip_bad, name=path.stem, source=source)


def _inputs(x: Any) -> tuple[Kind, Any]:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x if x.dtype.is_complex or not x.dtype.is_floating_point else x.float()).numpy()
    x = np.asarray(x)
    if x.ndim == 0 or len(x) == 0:
        raise InputError("x", f"has shape {x.shape}: no examples", "Give one row for every example.")
    if x.ndim == 1 and (x.dtype.kind == "U" or all(isinstance(value, str) for value in x)):
        return "text", [str(value) for value in x]
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return "image", _tensor(_channels_first(x))
    if x.dtype.kind not in "biuf":
        raise InputError("x", f"has dtype {x.dtype}", "Give numbers, uint8 images, or a list of strings.")
    if x.ndim == 1:
        raise InputError("x", f"has shape {x.shape}", "Give one row of values for every example: x[:, None].")
    return "array", _tensor(x.astype(np.float32, copy=False))


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory where NumPy allows writing to it."""
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    first, last = (1 <= x.shape[axis] <= 4 for axis in (1, 3))
    if first == last:
        raise InputError(
            "x",
            f"is uint8 of shape {x.shape}, in which the channels cannot be told from height and width",
            "Give (N, channels, height, width) or (N, height, width, channels) with 1 to 4 channels, "
            "or floats for arrays that are not images.",
        )
    return x if first else x.transpose(0, 3, 1, 2)


def _column(values: Any, part: str, count: int) -> pd.Series:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.dtype.kind == "S":
        values = values.astype(str)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (count,):
        raise InputError(
            part, f"has shape {values.shape}, but x has {count} rows", "Give one value for every row of x."
        )
    return pd.Series(values)
