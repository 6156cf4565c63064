"""How weights combine."""

from unseen.averaging.base import (
    Averaging,
    RunningMean,
    StateDict,
    estimate_batch_statistics,
    has_batch_statistics,
    snapshot,
)

__all__ = [
    "Averaging",
    "RunningMean",
    "StateDict",
    "estimate_batch_statistics",
    "has_batch_statistics",
    "snapshot",
]
