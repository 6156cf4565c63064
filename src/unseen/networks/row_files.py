"""A .npy file whose rows come one batch after the other; read as a memory-mapped tensor when it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError


class RowFile:
    """Appends rows to a .npy file that was announced to have `shape`; goes on behind the whole rows that it finds.

    done  whole rows that are in the file
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype):
        self.dtype, self.shape = dtype, shape
        self._file = open(path, "ab+")  # noqa: SIM115  __exit__ closes it
        start = _header_size(self._file, shape, dtype)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self.done = (self._file.seek(0, os.SEEK_END) - start) // row_bytes if row_bytes else 0
        self._file.truncate(start + self.done * row_bytes)  # a killed process may have left half a row

    def append(self, rows: Tensor) -> None:
        """Write rows (B, ...) of the announced shape, in the file's precision."""
        self._file.write(np.ascontiguousarray(rows.numpy().astype(self.dtype, copy=False)).data)
        self._file.flush()
        self.done += len(rows)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            os.fsync(self._file.fileno())
        self._file.close()


def map_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """The file as a tensor that the system reads page by page; writing to it changes the memory, never the file.

    Raises `InputError` for a file that is missing, cut short, too long, or of another shape or type.
    """
    try:
        with open(path, "rb") as file:
            found = _read_header(file)
            whole = file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            size = file.seek(0, os.SEEK_END)
        if found != (shape, False, dtype) or size != whole:
            raise ValueError(f"{size:,} bytes of {whole:,}" if found[0] == shape else f"shape {found[0]}")
        empty = 0 in shape  # and cannot be mapped
        array = np.load(path, mmap_mode=None if empty else "c", allow_pickle=False)
    except (OSError, ValueError) as error:
        problem = f"is not whole ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"file {str(path)!r}", problem, "Delete its folder and compute it again.") from None
    return torch.from_numpy(array)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def _header_size(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of the .npy header; written when `file` does not begin with a whole one."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    file.seek(0)
    try:
        _read_header(file)
    except ValueError:  # empty, or killed while the header was written
        file.truncate(0)
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
    return file.tell()
