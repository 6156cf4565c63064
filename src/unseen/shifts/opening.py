"""One door for all data: a file, a folder, a data frame, or the name of a built-in shift."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unseen import registry
from unseen.errors import InputError, nearest
from unseen.shifts.arrays import open_npz
from unseen.shifts.image_folders import IMAGE_ENDINGS, open_image_folder
from unseen.shifts.new_inputs import open_inputs
from unseen.shifts.preprocessing import fit_preprocessing
from unseen.shifts.shift import Shift
from unseen.shifts.tables import TABLE_ENDINGS, from_dataframe, read_table


def open_shift(
    source: str | os.PathLike[str] | pd.DataFrame | Shift,
    *,
    label: str | None = None,
    domain: str | None = None,
    group: str | None = None,
    time: str | None = None,
    text: str | None = None,
    features: Sequence[str] | None = None,
    skip_bad: bool = False,
    image_size: int | tuple[int, int] | None = None,
    outliers: str | os.PathLike[str] | None = None,
) -> Shift:
    """Open the data to learn from.

    source      a CSV, TSV, Parquet or Feather file or a data frame: `label` and `domain` name its columns;
                a folder laid out as domain/class/image;
                an .npz file with x, y and domain (and group, time, ids, classes, domains);
                the name of a built-in shift, with options: "digits(size=500)";
                a `Shift`, which comes back as it is. A path that exists wins over a name
    group       column of a further attribute for worst-group metrics
    time        column of numbers or dates that `shift.split(after=...)` compares with
    text        column of texts to learn from, in place of all other columns
    features    columns to learn from; None takes all that have no other role
    skip_bad    leave rows without label or domain, and images that cannot be decoded, out with a warning
    image_size  side or (height, width) in pixels; None follows the files, at most 224
    outliers    a file or folder of inputs that are of no class, in the form of what a trained model reads
                (`open_inputs`): for objectives that learn to be uncertain of them

    `open_shift(**shift.source)` opens the same data again. Raises `InputError` that says what is right.
    """
    if outliers is not None:
        plain = open_shift(
            source,
            label=label,
            domain=domain,
            group=group,
            time=time,
            text=text,
            features=features,
            skip_bad=skip_bad,
            image_size=image_size,
        )
        return _with_outliers(plain, outliers, text, skip_bad)
    options = {
        "label": label,
        "domain": domain,
        "group": group,
        "time": time,
        "text": text,
        "features": features,
        "skip_bad": skip_bad or None,
        "image_size": image_size,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(source, Shift):
        _allow(given, (), "a shift")
        return source
    if isinstance(source, pd.DataFrame):
        return _open_table(source, "data frame", given, {})
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"data of type {type(source).__name__}",
            "cannot be opened",
            "Give a path, a name, a data frame or a Shift; unseen.shifts.adapters takes arrays, Hugging Face "
            "and WILDS data sets and graphs.",
        )
    path = Path(source).expanduser()
    again = {"source": str(source), **given}
    if path.is_dir():
        _allow(given, ("skip_bad", "image_size"), "an image folder")
        return open_image_folder(path, image_size=image_size, skip_bad=skip_bad, source=again)
    if not path.exists():
        return _open_builtin(str(source), given)
    if path.suffix.lower() == ".npz":
        _allow(given, ("skip_bad",), "an .npz file")
        return open_npz(path, skip_bad=skip_bad, source=again)
    return _open_table(read_table(path), path.stem, given, again)


def _with_outliers(shift: Shift, source: str | os.PathLike[str], text: str | None, skip_bad: bool) -> Shift:
    # a preprocessing knows the kind and size of the inputs; what it fits on a few rows is not used
    form = fit_preprocessing(shift, torch.arange(min(len(shift), 32)))
    try:
        inputs, _ = open_inputs(source, form, text, skip_bad=skip_bad)
        if isinstance(inputs, pd.DataFrame):  # labels and domains, which outliers may have, mean nothing
            inputs = inputs[[column for column in inputs.columns if column in shift.inputs.columns]]
        shift = shift.with_outliers(inputs)
        form.encode(inputs)
    except InputError as error:
        raise InputError(f"outliers: {error.subject}", error.problem, error.remedy) from None
    return replace(shift, source={**shift.source, "outliers": str(source)} if shift.source else {})


def _open_table(frame: pd.DataFrame, name: str, given: dict[str, Any], source: dict[str, Any]) -> Shift:
    roles = ("label", "domain", "group", "time", "text", "features", "skip_bad")
    _allow(given, roles, "a table")
    for role in ("label", "domain"):
        if role not in given:
            columns = [str(column) for column in frame.columns]
            raise InputError(f"table {name!r}", f"needs a {role} column", nearest(role, columns))
    return from_dataframe(frame, **given, name=name, source=source)


def _open_builtin(text: str, given: dict[str, Any]) -> Shift:
    name = text.partition("(")[0].strip()
    if name not in registry.shifts:
        raise InputError(
            f"data {text!r}",
            "is neither a file or folder that exists nor the name of a built-in shift",
            " ".join(filter(None, [_near_files(Path(text)), nearest(name, registry.shifts.names())])),
        )
    _allow(given, (), f"the built-in shift {name!r}")
    return replace(registry.shifts.build(text), source={"source": text})


def _near_files(path: Path) -> str:
    """A sentence that offers files and folders with names near to one that does not exist."""
    folder = path.expanduser().parent
    if not folder.is_dir():
        return f"There is no folder {str(folder)!r}."
    endings = (*TABLE_ENDINGS, *IMAGE_ENDINGS, ".npz")
    names = [p.name for p in folder.iterdir() if p.is_dir() or p.name.lower().endswith(endings)]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return "Near files: " + ", ".join(repr(str(folder / name)) for name in close) + "." if close else ""


def _allow(given: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in allowed:
            remedy = f"{what} takes {' and '.join(allowed)} only." if allowed else f"Leave it out for {what}."
            raise InputError(f"option {name!r}", f"means nothing for {what}", remedy[0].upper() + remedy[1:])
