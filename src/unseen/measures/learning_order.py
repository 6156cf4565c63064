"""Which examples are learned early, late or never, and which are forgotten again.

Sources: Chatterjee & Zielinski 2022, arXiv 2203.10036 (easy and hard examples by when they are learned);
Toneva et al. 2019, arXiv 1812.05159 (forgetting).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_correct, same_length


class LearningOrder:
    """Watches whether a model is right on N fixed examples; call `observe` after each epoch (or some steps)."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._correct: list[NDArray[np.bool_]] = []

    def observe(self, step: int, correct: Any) -> None:
        """Note at a step (later than those before) for each example whether it is classified right, (N,)."""
        found = as_correct("correct", correct) > 0.5
        if self._correct:
            same_length("correct", found, "earlier steps", len(self._correct[0]))
            if step <= self.steps[-1]:
                raise InputError("step", f"is {step} after {self.steps[-1]}", "Give steps in their order.")
        self.steps.append(step)
        self._correct.append(found)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(S, N), a row an observation."""
        if not self._correct:
            raise InputError("learning order", "has seen nothing", "Call observe(step, correct) first.")
        return np.stack(self._correct)

    @property
    def first_learned(self) -> NDArray[np.float64]:
        """(N,) the step at which each example was right for the first time; infinity for never."""
        ever = self.correct.any(0)
        return np.where(ever, np.array(self.steps, float)[self.correct.argmax(0)], np.inf)

    @property
    def learned_for_good(self) -> NDArray[np.float64]:
        """(N,) the step from which on each example stayed right; infinity for wrong at the end."""
        wrong_after = np.flip(np.maximum.accumulate(np.flip(~self.correct, 0), 0), 0)
        ever = ~wrong_after[-1]
        return np.where(ever, np.array(self.steps, float)[(~wrong_after).argmax(0)], np.inf)

    @property
    def forgotten(self) -> NDArray[np.int64]:
        """(N,) how often each example went from right to wrong."""
        return (self.correct[:-1] & ~self.correct[1:]).sum(0)
