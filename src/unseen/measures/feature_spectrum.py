"""The spectrum of features: how evenly a representation spreads over its directions.

Label noise in pretraining flattens the spectrum of the features (Chen et al. 2024). Two of the numbers pull
in opposite directions by construction: a representation of one direction has the least entropy and the
strongest dominant direction. Read both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_numbers


@dataclass(frozen=True)
class SpectrumReport:
    """Singular values of N features of D dimensions, largest first, and what they say.

    singular_values         (min(N, D),)
    entropy                 SVE: -sum q log q in nats, q = s / sum(s); from 0 (one direction) to log min(N, D)
    largest_ratio           LSVR: -log of the largest value's share of their sum; from 0 (one direction) to
                            log min(N, D). The weaker the dominant direction, the higher.
    effective_rank          exp(entropy), in [1, min(N, D)] (Roy & Vetterli 2007)
    stable_rank             squared Frobenius norm by squared spectral norm, in [1, min(N, D)]
    """

    singular_values: NDArray[np.float64]
    entropy: float
    largest_ratio: float
    effective_rank: float
    stable_rank: float


def spectrum_report(
    features: Any, *, center: Literal["dataset", "sample"] | None = "dataset", normalize: bool = True
) -> SpectrumReport:
    """Singular value entropy and largest singular value ratio of `features` (N, D), N >= 2.

    normalize  scale every example to length 1 first
    center     then take off "dataset": the mean example, or "sample": each example's own mean over its D
               values, as the paper's published script does; None takes off nothing, and the mean example is
               then most of the first direction

    Raises InputError for fewer than two examples, NaN or infinite values, and features that do not vary.
    Chen et al., ICLR 2024, arXiv 2309.17002, section 2.3; computed in float64.
    """
    values = as_numbers("features", features, 2)
    if len(values) < 2:
        raise InputError("features", f"have {len(values)} example", "A spectrum needs at least two.")
    if not np.isfinite(values).all():
        raise InputError("features", "have infinite values", "Remove these examples.")
    if center not in ("dataset", "sample", None):
        raise InputError("center", f"is {center!r}", "Give 'dataset', 'sample' or None.")
    if normalize:
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values = values / np.where(lengths > 0, lengths, 1)
    size = np.abs(values).max()
    if center is not None:
        values = values - values.mean(0 if center == "dataset" else 1, keepdims=True)
    singular_values = np.linalg.svd(values, compute_uv=False)
    if singular_values[0] <= 1e-12 * size * np.sqrt(values.size):
        raise InputError(
            "features", "do not vary: all singular values are zero", "Check the encoder, or its input."
        )
    shares = singular_values / singular_values.sum()
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return SpectrumReport(
        singular_values=np.asarray(singular_values, dtype=np.float64),
        entropy=entropy,
        largest_ratio=float(-np.log(shares[0])),
        effective_rank=float(np.exp(entropy)),
        stable_rank=float((singular_values**2).sum() / singular_values[0] ** 2),
    )
