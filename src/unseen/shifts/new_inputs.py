"""Open unlabelled data for a trained model: what `unseen predict` reads."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.shifts.coding import some
from unseen.shifts.image_folders import IMAGE_ENDINGS, ImageFiles
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.tables import read_table


def open_inputs(
    source: str | os.PathLike[str],
    preprocessing: Preprocessing,
    text: str | None = None,
    *,
    skip_bad: bool = False,
) -> tuple[Any, list[str]]:
    """Raw inputs for a model's preprocessing and a name for each (file name or row number).

    source    a table (CSV, TSV, Parquet, Feather) for models of tables and texts (`text` names the column), an
              .npz file with x for arrays and images, an image or a folder of images, in any depth, for images
    skip_bad  leave images that cannot be decoded out, with a warning that counts them

    Raises `InputError` for data of another kind than the model's, or that cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"data {str(source)!r}", "does not exist", "Give a file or a folder.")
    kind = getattr(preprocessing, "input_kind", preprocessing.kind)
    if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
        _require(kind, ("image",), path)
        return _image_files(path, preprocessing, skip_bad)
    if path.suffix.lower() == ".npz":
        _require(kind, ("array", "image"), path)
        return _npz(path)
    _require(kind, ("table", "text"), path)
    frame = read_table(path)
    names = [str(row) for row in range(len(frame))]
    if kind == "table":
        return frame, names
    columns = [str(column) for column in frame.columns]
    if text not in columns and len(columns) == 1:
        text = columns[0]
    if text is None:
        remedy = f"Give its name (--text), one of: {', '.join(map(repr, columns))}."
        raise InputError(f"table {str(path)!r}", "needs a text column", remedy)
    if text not in columns:
        raise InputError(f"text column {text!r}", f"is not in {str(path)!r}", nearest(text, columns))
    return frame[text].fillna("").astype(str).tolist(), names


def read_column(source: str | os.PathLike[str], column: str) -> list[str]:
    """The values of one column of a table, as texts, in the order of `open_inputs`."""
    frame = read_table(Path(source).expanduser())
    columns = [str(name) for name in frame.columns]
    if column not in columns:
        raise InputError(f"column {column!r}", f"is not in {str(source)!r}", nearest(column, columns))
    return frame[column].astype(str).tolist()


def _require(kind: str, able: tuple[str, ...], path: Path) -> None:
    if kind not in able:
        wanted = {
            "table": "a table (CSV, TSV, Parquet, Feather)",
            "text": "a table with a text column",
            "image": "an image, a folder of images, or an .npz with x",
            "array": "an .npz file with x",
        }
        raise InputError(
            f"data {str(path)!r}", "does not fit the model", f"It reads {wanted.get(kind, kind)}."
        )


def _image_files(path: Path, preprocessing: Preprocessing, skip_bad: bool) -> tuple[ImageFiles, list[str]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and p.is_file())
        names = [str(p.relative_to(path)) for p in files]
        folder = path
    else:
        names, folder = [path.name], path.parent
    if not names:
        raise InputError(f"folder {str(path)!r}", "holds no images", f"It reads {', '.join(IMAGE_ENDINGS)}.")
    channels, height, width = getattr(preprocessing, "image_shape", preprocessing.shape)
    images = ImageFiles(folder, list(names), (height, width), channels)
    bad = images.find_bad(range(len(images))) if skip_bad else {}
    if bad:
        left_out = some([names[row] for row in bad])
        if len(bad) == len(names):
            raise InputError(f"data {str(path)!r}", f"has no image that can be decoded ({left_out})")
        message = f"{len(bad)} of {len(names)} images cannot be decoded and were left out: {left_out}"
        warnings.warn(f"data {str(path)!r}: {message}", UnseenWarning, stacklevel=3)
        images = images.select(torch.tensor([row for row in range(len(names)) if row not in bad]))
    return images, list(images.names)


def _npz(path: Path) -> tuple[torch.Tensor, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays:
                has = ", ".join(arrays)
                raise InputError(f"file {str(path)!r}", f"has no array x (it has {has})", "Name it x.")
            x = arrays["x"]
    except InputError:
        raise
    except Exception as error:  # broken zip and .npy files raise many types
        remedy = "Save it with numpy.savez, with numbers, no objects."
        raise InputError(f"file {str(path)!r}", f"cannot be read as .npz ({error})", remedy) from None
    if x.ndim == 0 or len(x) == 0 or x.dtype.kind not in "biuf":
        found = f"is {x.dtype} of shape {x.shape}"
        raise InputError(f"array 'x' of {str(path)!r}", found, "Give numbers, a row for every example.")
    if x.dtype == np.uint8 and x.ndim == 3:
        x = x[:, None]
    elif x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x)), [str(row) for row in range(len(x))]
