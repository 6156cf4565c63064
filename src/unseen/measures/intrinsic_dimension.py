"""How many directions the data have where they lie: nearest-neighbour estimate of the intrinsic dimension."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.measures.arrays import as_array

PAIRS_AT_A_TIME = 2**25
SPARE = 8
"""Neighbours beyond those asked for that are looked at in double precision: single precision may misplace some."""


def intrinsic_dimension(
    points: Any,
    k: int = 5,
    method: Literal["mle", "mle-unbiased"] = "mle",
    *,
    max_samples: int = 10_000,
    seed: int = 0,
) -> float:
    """Dimension of the set that `points` (N, ...) lie on; anything behind the first axis is flattened.

    k            neighbours of each point, from 2 ("mle-unbiased": 3)
    method       "mle": 1 / mean of ln(r_k / r_j) over points and j < k (Levina & Bickel, NeurIPS 2004, with the
                 average of MacKay & Ghahramani 2005); "mle-unbiased": times (k - 2) / (k - 1)
    max_samples  points whose neighbours are looked up, among all; drawn with `seed`

    Equal points count once: distances of zero have no logarithm. Not rounded. Raises InputError for fewer than k + 1
    distinct points, NaN and infinite values.
    """
    least = {"mle": 2, "mle-unbiased": 3}
    if method not in least:
        raise InputError(f"method {method!r}", "is not known", f"Give one of {', '.join(least)}.")
    if k < least[method]:
        raise InputError("k", f"is {k}", f"Give a number of neighbours from {least[method]}.")
    rows = distinct_rows(points)
    if len(rows) < k + 1:
        raise InputError("points", f"have {len(rows)} distinct ones", f"Give {k + 1} at least for k={k}.")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:max_samples]
    distances = torch.cat([
        _neighbour_distances(rows, part, k) for part in chosen.split(max(1, PAIRS_AT_A_TIME // len(rows)))
    ])  # fmt: skip
    ratios = (distances[:, -1:] / distances[:, :-1]).log().mean()
    return float(1 / ratios) * ((k - 2) / (k - 1) if method == "mle-unbiased" else 1)


def as_points(points: Any) -> Tensor:
    """(N, D) float32 or float64, centred; raises for values that are not finite."""
    array = as_array(points)
    if array.dtype.kind not in "fiub" or array.ndim < 2 or 0 in array.shape:
        found = f"are {array.dtype} of shape {array.shape}"
        raise InputError("points", found, "Give numbers, (points, ...).")
    rows = torch.from_numpy(np.ascontiguousarray(array.reshape(len(array), -1)))
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.double()
    if not torch.isfinite(rows.sum()):
        bad = (~torch.isfinite(rows).all(1)).nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, bad[:10]))
        raise InputError("points", f"have NaN or infinite values in rows {shown}", "Leave these out.")
    return rows - rows.mean(0)  # distances stay, and lose fewer digits


def distinct_rows(points: Any) -> Tensor:
    rows = as_points(points)
    bytes_of = np.ascontiguousarray(rows.numpy()).view(
        np.dtype((np.void, rows.shape[1] * rows.element_size()))
    )
    first = np.unique(bytes_of[:, 0], return_index=True)[1]
    return rows[torch.from_numpy(np.sort(first))]


def _neighbour_distances(rows: Tensor, chosen: Tensor, k: int) -> Tensor:
    """(n, k) float64 distances of the chosen rows to their nearest others, ascending."""
    single = rows.float()
    squares = single.square().sum(1)
    scores = torch.addmm(
        squares, single[chosen], single.T, alpha=-2
    )  # |x - y|^2 less |x|^2, which orders alike
    scores[torch.arange(len(chosen)), chosen] = torch.inf
    near = scores.topk(min(k + SPARE, len(rows) - 1), largest=False).indices
    exact = (rows[near].double() - rows[chosen].double().unsqueeze(1)).square().sum(2)
    return exact.sort(1).values[:, :k].sqrt()
