"""Where data come from: domains, splits, built-in shifts, the user's files."""

from unseen.shifts.batch import Batch
from unseen.shifts.shift import Shift, Split

__all__ = ["Batch", "Shift", "Split"]
