"""Plan, execute, store, select, summarise."""

from importlib import import_module
from typing import Any

# Imported when first used: `unseen.papers` needs the statistics alone, not the whole execution machinery.
_PUBLIC = {
    "Plan": "plan",
    "Results": "results",
    "Store": "store",
    "Study": "study",
    "execute": "execution",
    "train_for_deployment": "deploy",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"unseen.studies.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'unseen.studies' has no attribute {name!r}")
