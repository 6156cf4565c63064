"""Data sets that no Python package ships: files in a folder that the user names."""

from __future__ import annotations

import os
from pathlib import Path

from unseen.errors import InputError

VARIABLE = "UNSEEN_DATA"


def data_file(name: str, path: str | Path | None = None) -> Path:
    """Where the file `name` lies: at `path` (itself or its folder), else in the folder of $UNSEEN_DATA."""
    named = path if path is not None else os.environ.get(VARIABLE)
    if not named:
        raise InputError(
            f"data file {name!r}",
            "is not part of any package and no folder was named",
            f"Give path=..., or set the environment variable {VARIABLE} to the folder that has it.",
        )
    place = Path(named)
    found = place / name if place.is_dir() else place
    if not found.is_file():
        origin = "path" if path is not None else VARIABLE
        raise InputError(
            f"data file {name!r}",
            f"was not found: {origin} names {str(place)!r}",
            f"Name the file, or a folder that holds {name}.",
        )
    return found
