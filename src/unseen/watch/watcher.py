"""Chunk after chunk: is this still what the model was validated on, and how right is it likely to be?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from unseen.errors import InputError, UnseenWarning
from unseen.measures.accuracy_estimates import estimate_accuracy
from unseen.measures.drift import SURELY_CORRELATED, serial_correlation, warn_of_correlation
from unseen.measures.online_drift import ADWIN, DriftState
from unseen.measures.permutation_tests import mmd
from unseen.networks import Bank
from unseen.training.predictor import Predictor

TESTED = "atc max confidence"
"""The estimate of accuracy that is tested against the reference: it is a share of examples. All are kept."""


@dataclass(frozen=True)
class Chunk:
    """What was seen in one chunk.

    number              from 1
    first, last         names of its first and last example
    familiarity         mean score; higher is more familiar
    accepted            share of examples familiar enough, in [0, 1]
    drift_p_value       of the MMD between the chunk's features and the reference, in (0, 1]
    drift_effect        the MMD, 0 for equal distributions, at most 1.42
    accuracy            estimates without labels, by name, in [0, 1]
    serial_correlation  of neighbours; None unless it is sure: p-values are too small then
    alarms              reasons, in words; empty when there is nothing to say
    """

    number: int
    first: str
    last: str
    examples: int
    familiarity: float
    accepted: float
    drift_p_value: float
    drift_effect: float
    accuracy: dict[str, float]
    serial_correlation: float | None
    alarms: tuple[str, ...]

    @property
    def accuracy_range(self) -> tuple[float, float]:
        """Lowest and highest estimate. They assume different things: far apart, they say that none can be trusted.

        Under a strong shift the truth can be below all of them.
        """
        return min(self.accuracy.values()), max(self.accuracy.values())


class Watcher:
    """Compares chunks of a stream with the model's ID validation reference.

    alpha         chance that a chunk without any change raises a false alarm by one of the three tests against the
                  reference (features differ, fewer are accepted, ATC estimates a lower accuracy; corrected by Holm):
                  of a hundred calm chunks about 100 * alpha alarm
    permutations  of the MMD; None for 999, or 3 / alpha where that is more: fewer could never alarm
    A fourth alarm has no part in alpha: ADWIN, on the share of reference scores that a score exceeds, finds changes
    within the stream itself, from one chunk to the next.

    Raises InputError for a model without a sense of the familiar or without a reference.
    """

    def __init__(
        self, predictor: Predictor, *, alpha: float = 0.01, permutations: int | None = None, seed: int = 0
    ):
        if predictor.familiarity is None:
            raise InputError("model", "has no sense of the familiar", "Fit it: predictor.know_familiar(...).")
        if predictor.reference is None:
            raise InputError(
                "model",
                "has no reference sample (reference.safetensors), so there is nothing to compare a stream with",
                "Run `unseen run` again, which writes it; or in Python: predictor.reference = Reference.of(bank of "
                "ID validation, predictor.familiarity), then predictor.save(folder).",
            )
        if not 0.0001 <= alpha < 1:  # permutations resolve p-values of 1 / permutations, and need memory
            raise InputError("alpha", f"is {alpha}", "Give a number from 0.0001 and below 1, such as 0.01.")
        least = math.ceil(3 / alpha) - 1
        permutations = max(999, least) if permutations is None else permutations
        if permutations < least:
            raise InputError("permutations", f"is {permutations}", f"Give {least} at least.")
        self.predictor, self.reference = predictor, predictor.reference
        self.alpha, self.permutations, self.seed = alpha, permutations, seed
        self.chunks: list[Chunk] = []
        bank = self.reference.bank
        self.expected = {
            "familiarity": float(self.reference.scores.mean()),
            "accepted": float((self.reference.scores >= predictor.familiarity.threshold).float().mean()),
            "accuracy": float(bank.correct.float().mean()),
        }
        self._probabilities = bank.probabilities.double().numpy()
        self._sorted_scores = np.sort(self.reference.scores.numpy())
        self._within = ADWIN()
        self._warned = False

    def observe(self, inputs: Any, names: Sequence[str] | None = None) -> Chunk:
        """The next chunk: raw inputs in the order of arrival, two at least, and a name for each."""
        bank = self.predictor.outputs(inputs)
        return self.observe_outputs(bank, names)

    def observe_outputs(self, bank: Bank, names: Sequence[str] | None = None) -> Chunk:
        """As `observe`, for outputs of the model that are at hand."""
        seen, count = sum(chunk.examples for chunk in self.chunks), len(bank)
        if count < 2:
            raise InputError("chunk", f"has {count} example(s)", "Give two at least, better a hundred.")
        names = [str(seen + i) for i in range(count)] if names is None else list(names)
        familiarity = self.predictor.familiarity
        scores = familiarity.score(bank)  # type: ignore[union-attr]  # checked in __init__
        accepted = int((scores >= familiarity.threshold).sum())  # type: ignore[union-attr]
        number = len(self.chunks) + 1
        found = mmd(
            self.reference.features, bank.features, permutations=self.permutations, seed=self.seed + number
        )
        accuracy = estimate_accuracy(self._probabilities, self.reference.labels, bank.probabilities.double())
        tests = {
            f"features differ from the reference (MMD {found.effect:.3f})": found.p_value,
            f"{accepted / count:.0%} accepted, of the reference {self.expected['accepted']:.0%}": self._fewer(
                accepted, count, self.expected["accepted"]
            ),
            f"accuracy estimated by ATC {accuracy[TESTED]:.0%}, of the reference {self.expected['accuracy']:.0%}": (
                self._fewer(round(accuracy[TESTED] * count), count, self.expected["accuracy"])
            ),
        }
        chunk = Chunk(
            number=number,
            first=names[0],
            last=names[-1],
            examples=count,
            familiarity=float(scores.mean()),
            accepted=accepted / count,
            drift_p_value=found.p_value,
            drift_effect=found.effect,
            accuracy=accuracy,
            serial_correlation=self._serial_correlation(bank),
            alarms=(*_rejected(tests, self.alpha), *self._changes(scores.cpu().numpy(), names)),
        )
        self.chunks.append(chunk)
        return chunk

    def _fewer(self, hits: int, count: int, expected: float) -> float:
        """One-sided p-value that the share hits / count is below the reference's (Fisher's exact test)."""
        size = len(self.reference)
        reference = round(expected * size)
        table = [[hits, count - hits], [reference, size - reference]]
        return float(fisher_exact(table, alternative="less").pvalue)

    def _changes(self, scores: np.ndarray, names: Sequence[str]) -> list[str]:
        """Where ADWIN found that familiarity changed within the stream."""
        alarms = []
        ranks = np.searchsorted(self._sorted_scores, scores, side="right") / len(self._sorted_scores)
        for rank, name in zip(ranks, names, strict=True):
            before = self._within.mean
            if self._within.update(rank) is DriftState.DRIFT:
                way = "fell" if self._within.mean < before else "rose"
                alarms.append(f"familiarity {way} within the stream, noticed at {name} (ADWIN)")
        if len(alarms) > 1:  # it goes on dropping old examples as it grows surer of the same change
            rest = len(alarms) - 1
            alarms[1:] = [f"and so at {rest} more place{'s' if rest > 1 else ''}"]
        return alarms

    def _serial_correlation(self, bank: Bank) -> float | None:
        found = serial_correlation(bank.features)
        if found.p_value > SURELY_CORRELATED:
            return None
        with warnings.catch_warnings():
            if self._warned:  # once a stream
                warnings.simplefilter("ignore", UnseenWarning)
            self._warned = warn_of_correlation(found, len(bank))
        return found.correlation


def _rejected(p_values: dict[str, float], alpha: float) -> list[str]:
    """Reasons whose p-value Holm's method rejects at level alpha, with it."""
    reasons = []
    for rank, (reason, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p_value * (len(p_values) - rank) > alpha:
            break
        reasons.append(f"{reason}, p = {p_value:.2g}")
    return reasons
