"""unseen: generalization beyond the training distribution."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__: list[str] = []

_PUBLIC: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    # Public names are imported when first used: `unseen --help` must not wait for torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen' has no attribute {name!r}")
