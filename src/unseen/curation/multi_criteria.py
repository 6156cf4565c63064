"""TOPSIS: one number for several criteria, by the distance from the best and from the worst that is there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError, UnseenWarning

Normalize = Literal["vector", "minmax", "rank"]


def topsis(
    matrix: Any,
    benefit: Sequence[bool],
    weights: Sequence[float] | None = None,
    normalize: Normalize = "vector",
) -> NDArray[np.float64]:
    """(N,) closeness in [0, 1] to the ideal alternative of N >= 2, by M criteria (N, M): the higher, the better.

    benefit    (M,) whether more of a criterion is better
    weights    (M,) from 0, scaled to sum 1; None for equal ones
    normalize  "vector" divides a column by its length, and keeps signs; "minmax" brings it to [0, 1]; "rank" takes
               the places of its values, so that no outlier decides

    A criterion that is the same for all says nothing: it is left out with a warning. Raises InputError for numbers
    that are not finite, shapes that do not fit, and when nothing is left to rank by.
    Source: Hwang & Yoon 1981, "Multiple attribute decision making".
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise InputError("matrix", f"has shape {values.shape}", "Give two alternatives or more, (N, M).")
    wrong = np.flatnonzero(~np.isfinite(values).all(1)).tolist()
    if wrong:
        raise InputError(
            f"row {', '.join(map(str, wrong[:10]))} of the matrix", "is not finite", "Leave it out."
        )
    if len(benefit) != values.shape[1]:
        raise InputError(
            "benefit", f"has {len(benefit)} entries", f"Give {values.shape[1]}, one a criterion."
        )
    share = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (values.shape[1],) or not (share >= 0).all() or not 0 < share.sum() < np.inf:
        raise InputError("weights", f"are {weights}", f"Give {values.shape[1]} finite numbers from 0.")
    constant = np.ptp(values, axis=0) == 0
    if (constant & (share > 0)).any():
        columns = ", ".join(map(str, np.flatnonzero(constant & (share > 0))))
        warnings.warn(f"criterion {columns} is the same for all and is left out", UnseenWarning, stacklevel=2)
    used = ~constant & (share > 0)
    if not used.any():
        raise InputError("matrix", "has no criterion that tells alternatives apart", "Give one that varies.")
    weighted = _normalized(values[:, used], normalize) * (share[used] / share[used].sum())
    sign = np.where(np.asarray(benefit)[used], 1.0, -1.0)
    signed = weighted * sign
    from_best = np.linalg.norm(signed - signed.max(0), axis=1)
    from_worst = np.linalg.norm(signed - signed.min(0), axis=1)
    return from_worst / (from_best + from_worst)


def _normalized(values: NDArray[np.float64], normalize: str) -> NDArray[np.float64]:
    if normalize == "vector":
        largest = np.abs(values).max(0)  # first, so that squares of tiny values are not lost
        return values / largest / np.linalg.norm(values / largest, axis=0)
    if normalize == "minmax":
        return (values - values.min(0)) / np.ptp(values, axis=0)
    if normalize == "rank":
        from scipy.stats import rankdata

        return rankdata(values, axis=0) / len(values)
    raise InputError(f"normalize {normalize!r}", "is not known", "Give 'vector', 'minmax' or 'rank'.")
