"""Name for the shift of `unseen.shifts.fair_circle`."""

from __future__ import annotations

from unseen.registry import shifts
from unseen.shifts import fair_circle

shifts.register(
    "fair-circle",
    summary="Generated: domains on a half circle, and a sensitive attribute with known counterfactuals",
    paper="after Lin et al. 2023, arXiv 2309.13005",
)(fair_circle.fair_circle)
