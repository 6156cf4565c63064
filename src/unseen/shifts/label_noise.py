"""Wrong labels on purpose: to study what noise in (pre)training data does elsewhere."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError

NoiseKind = Literal["uniform", "pair", "confusion"]


def noisy_labels(
    labels: Any,
    rate: float,
    kind: NoiseKind = "uniform",
    *,
    classes: int,
    confusion: Any = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Labels (N,) of which round(rate * N), drawn at random, are wrong.

    rate       share of examples that get *another* class, in [0, 1]. Papers that draw the new class among all
               K, the true one included, have an effective rate of r (1 - 1/K)
    kind       the other class: "uniform" among the K - 1 others, "pair": the next class (the last becomes the
               first), "confusion": by the row of the true class in `confusion` (K, K), whose diagonal is left
               out
    classes    K
    Raises InputError for labels outside 0..K-1 and a rate outside [0, 1].
    """
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) == 0:
        raise InputError("labels", f"have shape {given.shape}, dtype {given.dtype}", "Give integers (N,).")
    if classes < 2:
        raise InputError("classes", f"is {classes}", "A label can be wrong among two classes or more.")
    if given.min() < 0 or given.max() >= classes:
        raise InputError(
            "labels",
            f"range from {given.min()} to {given.max()}",
            f"Give labels from 0 to {classes - 1}, or more classes.",
        )
    shares = _transition(kind, classes, confusion)
    generator = np.random.default_rng(seed)
    rows = _rows(len(given), rate, generator)
    noisy = given.astype(np.int64)
    draws = generator.random(len(rows))
    noisy[rows] = (np.cumsum(shares, 1)[noisy[rows]] > draws[:, None]).argmax(1)
    return noisy


def swapped(values: Any, rate: float, *, seed: int = 0) -> list[Any]:
    """Captions (N of anything) of which round(rate * N) have changed places, each with that of another example.

    The swapped captions of noisy image-text pretraining. A single one cannot be swapped: it stays. Raises
    InputError for a rate outside [0, 1].
    """
    values = list(values)
    rows = _rows(len(values), rate, np.random.default_rng(seed)).tolist()
    result = list(values)
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):  # one cycle: none stays in its place
        result[row] = values[other]
    return result


def _rows(count: int, rate: float, generator: np.random.Generator) -> NDArray[np.int64]:
    if not 0 <= rate <= 1:
        raise InputError("rate", f"is {rate}", "Give a share from 0 to 1.")
    return generator.permutation(count)[: round(rate * count)]


def _transition(kind: str, classes: int, confusion: Any) -> NDArray[np.float64]:
    """(K, K) probabilities of the wrong class, a row a true class, zero on the diagonal."""
    if kind == "uniform":
        shares = np.ones((classes, classes))
    elif kind == "pair":
        shares = np.roll(np.eye(classes), 1, axis=1)
    elif kind == "confusion":
        shares = np.array(confusion, dtype=np.float64) if confusion is not None else np.zeros(0)
        if shares.shape != (classes, classes) or not (shares >= 0).all():
            raise InputError(
                "confusion",
                f"has shape {shares.shape} or negative entries",
                f"Give counts or probabilities ({classes}, {classes}).",
            )
    else:
        raise InputError("kind", f"is {kind!r}", "Give 'uniform', 'pair' or 'confusion'.")
    np.fill_diagonal(shares, 0)
    totals = shares.sum(1, keepdims=True)
    if (totals == 0).any():
        raise InputError(
            "confusion", f"has no other class for class {int((totals == 0).argmax())}", "Give it one."
        )
    shares /= totals
    return shares
