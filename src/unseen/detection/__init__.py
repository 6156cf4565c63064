"""Unfamiliar inputs: scores, thresholds, metrics."""

from unseen.detection.base import Detector, require_finite
from unseen.detection.familiarity import Familiarity

__all__ = ["Detector", "Familiarity", "require_finite"]
