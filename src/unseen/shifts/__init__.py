"""Where data come from: domains, splits, built-in shifts, the user's files."""

from unseen.shifts.batch import Batch
from unseen.shifts.checks import check_shift
from unseen.shifts.corruptions import corrupt, corruption_shift
from unseen.shifts.multimodal import from_modalities
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift, Split

__all__ = [
    "Batch",
    "Shift",
    "Split",
    "check_shift",
    "corrupt",
    "corruption_shift",
    "from_modalities",
    "open_shift",
]
