"""Names for the shifts of `unseen.shifts.generators`."""

from __future__ import annotations

from unseen.registry import shifts
from unseen.shifts import generators

shifts.register("gaussian-shift", summary="Generated covariate shift: clouds slide along a curved boundary")(
    generators.gaussian_shift
)
shifts.register(
    "spurious",
    summary="Generated: a spurious feature that agrees with the label by the domain's custom",
    paper="Arjovsky et al. 2019, Invariant risk minimization",
)(generators.spurious)
shifts.register("concept-shift", summary="Generated: the class boundary turns from domain to domain")(
    generators.concept_shift
)
shifts.register("label-shift", summary="Generated: the class frequencies differ by domain")(
    generators.label_shift
)
shifts.register("drift", summary="Generated: the class boundary turns with time")(generators.drift)
