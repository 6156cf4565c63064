"""Open unlabelled data for a trained model: what `unseen predict` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unseen.errors import InputError
from unseen.shifts.image_folders import IMAGE_ENDINGS, ImageFiles
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.tables import read_table


def open_inputs(
    source: str | os.PathLike[str], preprocessing: Preprocessing, text: str | None = None
) -> tuple[Any, list[str]]:
    """Raw inputs for a model's preprocessing and a name for each (file name or row number).

    source  a table (CSV, TSV, Parquet, Feather) for models of tables and texts (`text` names the column), an
            .npz file with x for arrays and images, an image or a folder of images, in any depth, for images
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"data {str(source)!r}", "does not exist", "Give a file or a folder.")
    kind = getattr(preprocessing, "input_kind", preprocessing.kind)
    if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
        _require(kind, ("image",), path)
        return _image_files(path, preprocessing)
    if path.suffix.lower() == ".npz":
        _require(kind, ("array", "image"), path)
        return _npz(path)
    _require(kind, ("table", "text"), path)
    frame = read_table(path)
    names = [str(row) for row in range(len(frame))]
    if kind == "table":
        return frame, names
    columns = [str(column) for column in frame.columns]
    if text is None and len(columns) == 1:
        text = columns[0]
    if text not in columns:
        raise InputError(
            f"text column {text!r}", f"is not in {str(path)!r}", f"Give --text, one of: {', '.join(columns)}."
        )
    return frame[text].fillna("").astype(str).tolist(), names


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


def _image_files(path: Path, preprocessing: Preprocessing) -> tuple[ImageFiles, list[str]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and p.is_file())
        names = [str(p.relative_to(path)) for p in files]
        folder = path
    else:
        names, folder = [path.name], path.parent
    if not names:
        raise InputError(f"folder {str(path)!r}", "holds no images", f"It reads {', '.join(IMAGE_ENDINGS)}.")
    channels, height, width = getattr(preprocessing, "image_shape", preprocessing.shape)
    return ImageFiles(folder, list(names), (height, width), channels), names


def _npz(path: Path) -> tuple[torch.Tensor, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays:
                raise InputError(
                    f"file {str(path)!r}", f"has no array x (it has {', '.join(arrays)})", "Name it x."
                )
            x = torch.from_numpy(arrays["x"])
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"file {str(path)!r}", f"cannot be read ({error})", "Save it with numpy.savez."
        ) from None
    if x.dtype == torch.uint8 and x.dim() == 3:
        x = x[:, None]
    elif x.dtype == torch.uint8 and x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    return x, [str(row) for row in range(len(x))]
