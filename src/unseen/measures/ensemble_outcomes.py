"""What an ensemble makes of its two members' right and wrong predictions, example by example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from unseen.errors import InputError
from unseen.measures.arrays import as_array, same_length

PATTERNS = tuple("".join(letters) for letters in product("TF", repeat=3))
"""TTT, TTF, ..., FFF: whether the first member, the second and the ensemble are right."""


@dataclass(frozen=True)
class EnsembleOutcomes:
    """How many examples fall into each of the eight cells of `PATTERNS`."""

    counts: Mapping[str, int]

    @property
    def examples(self) -> int:
        return sum(self.counts.values())

    def rate(self, pattern: str) -> float:
        """Share of examples in a cell, in [0, 1]; "FFT" is what both members get wrong and the ensemble right."""
        if pattern not in self.counts:
            raise InputError(f"pattern {pattern!r}", "is not known", f"Give one of {', '.join(PATTERNS)}.")
        return self.counts[pattern] / self.examples

    @property
    def gain(self) -> float:
        """Accuracy of the ensemble minus the mean of its members'."""
        right = [sum(n for p, n in self.counts.items() if p[i] == "T") / self.examples for i in range(3)]
        return right[2] - (right[0] + right[1]) / 2


def ensemble_outcomes(a: Any, b: Any, ensemble: Any, labels: Any) -> EnsembleOutcomes:
    """The 8-cell table of Lin et al. 2024 (arXiv 2309.17230), of four arrays (N,) of classes.

    `a`, `b` and `ensemble` are predicted classes: of logits, take the argmax, which gives ties to the first class.
    Averages of weights count as ensembles, too. Raises `InputError` for lengths that differ and for no examples.
    """
    given = {"labels": labels, "a": a, "b": b, "ensemble": ensemble}
    arrays = {name: as_array(values) for name, values in given.items()}
    for name, values in arrays.items():
        if values.ndim != 1 or not len(values):
            raise InputError(name, f"has shape {values.shape}", "Give one class for each of N examples.")
        same_length(name, values, "labels", len(arrays["labels"]))
    right = [arrays[name] == arrays["labels"] for name in ("a", "b", "ensemble")]
    code = 4 * ~right[0] + 2 * ~right[1] + ~right[2]
    counts = np.bincount(code, minlength=8)
    return EnsembleOutcomes(dict(zip(PATTERNS, counts.tolist(), strict=True)))
