"""Does one of two models drown the other when they are averaged? How sure each is, and how to make them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from unseen.errors import InputError
from unseen.measures.arrays import as_numbers, same_length
from unseen.measures.calibration import calibration_error


@dataclass(frozen=True)
class Confidence:
    """Of one model on one set of examples.

    mean        mean probability of the predicted class, in [1 / C, 1]
    logit_norm  mean length of the logits, centred within each example (softmax does not see their mean)
    error       expected calibration error, in [0, 1]
    """

    mean: float
    logit_norm: float
    error: float


@dataclass(frozen=True)
class ConfidenceGap:
    """How sure two models are of the same examples; `threshold` is the gap from which one of them dominates."""

    a: Confidence
    b: Confidence
    threshold: float

    @property
    def gap(self) -> float:
        """Mean confidence of b minus that of a."""
        return self.b.mean - self.a.mean

    @property
    def dominant(self) -> Literal["a", "b"] | None:
        """The model that would outweigh the other in an average of the two, if there is one."""
        if abs(self.gap) < self.threshold:
            return None
        return "b" if self.gap > 0 else "a"


def confidence_gap(a: Any, b: Any, labels: Any, *, threshold: float = 0.05) -> ConfidenceGap:
    """Compare the confidence of two models by their logits (N, C) on the same examples with labels (N,).

    Lin et al. 2024 (arXiv 2309.17230): a fine-tuned model that is far surer than the pretrained one out of
    distribution spoils their average. Call it on ID and on OOD examples, never on mixed ones. The threshold is
    ours. Raises `InputError` for logits of different shapes and labels that do not fit.
    """
    logits_a, logits_b = as_numbers("a", a, 2), as_numbers("b", b, 2)
    same_length("b", logits_b, "a", len(logits_a))
    if logits_a.shape != logits_b.shape:
        raise InputError(
            "b",
            f"has {logits_b.shape[1]} classes, but a {logits_a.shape[1]}",
            "Give models of the same classes.",
        )
    return ConfidenceGap(_confidence(logits_a, labels), _confidence(logits_b, labels), threshold)


def _confidence(logits: np.ndarray, labels: Any) -> Confidence:
    probabilities = softmax(logits, axis=1)
    centred = logits - logits.mean(1, keepdims=True)
    return Confidence(
        float(probabilities.max(1).mean()),
        float(np.linalg.norm(centred, axis=1).mean()),
        calibration_error(probabilities, labels),
    )


def temperature_for_confidence(logits: Any, confidence: float) -> float:
    """Temperature T at which softmax(logits / T) has this mean confidence, which falls as T grows.

    Divide a model's logits, or the weight and bias of its head, by T to match it to another model before
    averaging (Lin et al. 2024, section 4). Raises `InputError` when no T between 1/1000 and 1000 times the spread
    of the logits gives it.
    """
    logits = as_numbers("logits", logits, 2)
    spread = float(logits.std(axis=1).mean())

    def excess(log_scale: float) -> float:
        return float(softmax(logits * np.exp(log_scale), axis=1).max(1).mean()) - confidence

    low, high = np.log([1e-3, 1e3]) - np.log(spread or 1.0)
    if excess(low) > 0 or excess(high) < 0:
        reach = excess(low) + confidence, excess(high) + confidence
        problem = f"cannot be reached: temperatures give from {reach[0]:.3f} to {reach[1]:.3f}"
        raise InputError(
            f"confidence {confidence:g}", problem, f"Give one above 1 / {logits.shape[1]} and below 1."
        )
    return float(np.exp(-brentq(excess, low, high, xtol=1e-10)))
