"""Features on disk: computed once for each (weights, input rule, data), resumed when killed half-way."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from unseen.errors import InputError
from unseen.networks.row_files import RowFile
from unseen.shifts.shift import count_rows, take

BATCH = 64
"""Rows encoded at a time: large enough for any processor, small enough to lose little when killed."""

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where features are kept: $UNSEEN_CACHE, else `unseen` in the user's cache folder. May be deleted any time."""
    chosen = os.environ.get("UNSEEN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "unseen"


def content_hash(inputs: Any) -> str:
    """Hash of raw inputs: a tensor, array, data frame, list of texts, dict of these, or images with a `fingerprint`."""
    if hasattr(inputs, "fingerprint"):
        return str(inputs.fingerprint)
    digest = hashlib.sha256()
    if isinstance(inputs, dict):
        inputs = [f"{name} {content_hash(inputs[name])}" for name in sorted(inputs)]
    elif isinstance(inputs, pd.DataFrame):
        digest.update(repr([*inputs.columns, *inputs.dtypes]).encode())
        inputs = pd.util.hash_pandas_object(inputs, index=False).to_numpy()
    if isinstance(inputs, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(inputs)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    else:
        for item in inputs:
            text = str(item).encode()
            digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def encode_in_batches(
    encode: Callable[[Any], Tensor], inputs: Any, first: int = 0, progress: Progress | None = None
) -> Iterator[Tensor]:
    """Yield features (at most `BATCH`, D) of the rows of `inputs` from `first` on, as float32 on the CPU."""
    count = count_rows(inputs)
    for start in range(first, count, BATCH):
        rows = torch.arange(start, min(start + BATCH, count))
        with torch.inference_mode():
            features = encode(take(inputs, rows)).float().cpu()
        yield features
        if progress is not None:
            progress(int(rows[-1]) + 1, count)


def cached_features(
    encode: Callable[[Any], Tensor],
    inputs: Any,
    width: int,
    key: str,
    *,
    dtype: str = "float32",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> np.memmap:
    """Features (N, width) of N raw inputs, memory-mapped and read-only; `encode` runs on rows not yet on disk.

    encode    raw inputs of a batch to features (B, width)
    key       what besides the inputs decides the features: `Backbone.fingerprint`
    dtype     "float32", or "float16" for half the disk and about three digits
    folder    default: `features` in `cache_folder()`
    progress  called as progress(rows done, N)
    A file appears under its name only when it is whole. Until then rows are appended to a `.part` file, which a
    later call goes on with. Other processes that want the same features wait for the one that computes them.
    """
    if dtype not in ("float32", "float16"):
        raise InputError("dtype", f"is {dtype!r}", "Choose 'float32' or 'float16'.")
    identity = f"{key} {content_hash(inputs)} {width} {dtype}"
    folder = Path(folder) if folder is not None else cache_folder() / "features"
    final = folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + ".npy")
    if not final.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(final.with_suffix(".lock")):  # the system frees it when its process dies
                if not final.exists():
                    part = final.with_suffix(".part")
                    _complete(part, encode, inputs, width, np.dtype(dtype), progress)
                    os.replace(part, final)
        except OSError as error:
            raise InputError(
                f"feature cache {str(folder)!r}",
                f"cannot be written ({error.strerror or error})",
                "Set UNSEEN_CACHE to a folder with free space.",
            ) from error
    return np.load(final, mmap_mode="r", allow_pickle=False)


def compute_features(
    encode: Callable[[Any], Tensor], inputs: Any, width: int, key: str, progress: Progress | None = None
) -> Tensor:
    """Features (N, width) in memory, by way of the cache where N exceeds one batch; see `cached_features`.

    Smaller sets are encoded at once: requests to a served model must not fill the disk.
    """
    if count_rows(inputs) > BATCH:
        return torch.from_numpy(cached_features(encode, inputs, width, key, progress=progress).copy())
    return torch.cat([torch.zeros(0, width), *encode_in_batches(encode, inputs, 0, progress)])


def _complete(
    part: Path,
    encode: Callable[[Any], Tensor],
    inputs: Any,
    width: int,
    dtype: np.dtype,
    progress: Progress | None,
) -> None:
    """Append to `part` the rows that it lacks."""
    with RowFile(part, (count_rows(inputs), width), dtype) as file:
        for features in encode_in_batches(encode, inputs, file.done, progress):
            if features.shape[1] != width:
                raise InputError("features", f"have {features.shape[1]} columns", f"{width} were announced.")
            file.append(features)
