"""Which pretrained backbone to take: the same tasks, the same budget, one table, a ranking and its uncertainty.

After Goldblum et al. 2023, Battle of the Backbones (arXiv 2310.19909).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: `unseen --help` imports this package for its command and must not wait for torch.
_PUBLIC = {
    "BackboneArena": "unseen.arena.arena",
    "BoxData": "unseen.arena.boxes",
    "Candidate": "unseen.arena.backbones",
    "Detection": "unseen.arena.detection",
    "candidate": "unseen.arena.backbones",
    "declare_metric": "unseen.arena.measures",
    "average_precision": "unseen.arena.average_precision",
    "masked_accuracy": "unseen.arena.measures",
    "retrieval_scores": "unseen.arena.measures",
    "Budget": "unseen.arena.protocols",
    "FewShot": "unseen.arena.protocols",
    "FineTune": "unseen.arena.protocols",
    "LinearProbe": "unseen.arena.protocols",
    "OODEval": "unseen.arena.protocols",
    "RegressionProbe": "unseen.arena.protocols",
    "Retrieval": "unseen.arena.protocols",
    "Score": "unseen.arena.protocols",
    "Task": "unseen.arena.protocols",
    "attribute_regression": "unseen.arena.ranking",
    "open_boxes": "unseen.arena.boxes",
    "recommend": "unseen.arena.ranking",
    "TunedDetection": "unseen.arena.detection",
    "task_correlation": "unseen.arena.ranking",
    "zscore_ranking": "unseen.arena.ranking",
    "zscores": "unseen.arena.ranking",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen.arena' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
