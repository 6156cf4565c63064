"""Watch a deployed model: what arrives, chunk by chunk, beside what the model was validated on."""

from importlib import import_module
from typing import Any

_PUBLIC = {"Chunk": "watcher", "Watcher": "watcher", "open_arrivals": "arrivals", "write_watch": "records"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"unseen.watch.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'unseen.watch' has no attribute {name!r}")
