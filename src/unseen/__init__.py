"""unseen: generalization beyond the training distribution."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names are imported when first used: `unseen --help` must not wait for torch.
_PUBLIC = {
    "Batch": "unseen.shifts",
    "Shift": "unseen.shifts",
    "Split": "unseen.shifts",
    "open_shift": "unseen.shifts",
    "Network": "unseen.networks",
    "Bank": "unseen.networks",
    "Objective": "unseen.objectives",
    "Loss": "unseen.objectives",
    "UpdateRule": "unseen.updates",
    "Averaging": "unseen.averaging",
    "Detector": "unseen.detection",
    "Learner": "unseen.training",
    "Predictor": "unseen.training",
    "fit": "unseen.training",
    "load": "unseen.training.model_folder",
    "UnseenClassifier": "unseen.training.estimator",
    "FamiliarityDetector": "unseen.training.familiarity_estimator",
    "Study": "unseen.studies",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
