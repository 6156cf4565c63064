"""How close differently labelled points come: the spatial resolution that a classifier of the data needs."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.measures.arrays import as_array, same_length
from unseen.measures.extreme_values import extreme_tail
from unseen.measures.intrinsic_dimension import as_points

PAIRS_AT_A_TIME = 2**25
ENUMERATED = 2000
"""Points up to which all pairs are looked at."""


def class_separation(
    points: Any,
    labels: Any,
    method: Literal["evt", "min"] = "evt",
    *,
    max_samples: int = 30_000,
    pairs: int = 4_000_000,
    tail: int = 2000,
    seed: int = 0,
) -> float:
    """Least distance between points (N, ...) with different labels (N,).

    method       "min": of `max_samples` points at most, drawn with `seed`; "evt": extrapolated to all pairs from the
                 `tail` nearest of `pairs` random ones (all pairs, up to 2,000 points), by the moment estimator of
                 extreme quantiles of 1 / distance (Dekkers, Einmahl & de Haan, Ann. Stat. 1989), and never above the
                 least distance that was seen. Source of both: Boopathy et al., ICML 2023; their code leaves out
                 the factor 1 - gamma_ of the quantile, which is one for heavy tails

    Equal points with different labels make it 0, with a warning. Raises InputError for a single class, NaN and
    infinite values.
    """
    rows, names = as_points(points), as_array(labels)
    same_length("labels", names, "points", len(rows))
    classes = torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))
    if int(classes.max()) == 0:
        raise InputError("labels", "name a single class", "Separation is between classes: give two at least.")
    if method not in ("evt", "min"):
        raise InputError(f"method {method!r}", "is not known", "Give 'evt' or 'min'.")
    generator = torch.Generator().manual_seed(seed)
    if method == "min":
        chosen = torch.randperm(len(rows), generator=generator)[:max_samples]
        found = _least(rows[chosen], classes[chosen])
    else:
        found = _extrapolated(rows, classes, pairs, tail, generator)
    if found == 0:
        warnings.warn(
            "class separation: equal points have different labels, so no resolution separates the classes. Look for "
            "wrong labels or too few features, or leave these points out.",
            UnseenWarning,
            stacklevel=2,
        )
    return found


def _least(rows: Tensor, classes: Tensor) -> float:
    """Least distance over all differently labelled pairs; the candidates of single precision are looked at again."""
    single, best = rows.float(), torch.inf
    squares = single.square().sum(1)
    for part in torch.arange(len(rows)).split(max(1, PAIRS_AT_A_TIME // len(rows))):
        scores = torch.addmm(squares, single[part], single.T, alpha=-2) + squares[part].unsqueeze(1)
        scores[classes[part].unsqueeze(1) == classes] = torch.inf
        near = scores.topk(min(8, len(rows)), largest=False).indices
        exact = (rows[near].double() - rows[part].double().unsqueeze(1)).square().sum(2)
        exact[classes[near] == classes[part].unsqueeze(1)] = torch.inf
        best = min(best, float(exact.min()))
    return best**0.5


def _extrapolated(rows: Tensor, classes: Tensor, pairs: int, tail: int, generator: torch.Generator) -> float:
    distances, possible = _pair_distances(rows, classes, pairs, generator)
    if distances[0] == 0 or len(distances) < 3:
        return float(distances[0])
    tail = min(tail, len(distances) - 1)
    found = extreme_tail(1 / distances[: tail + 1], tail / len(distances))
    if found is None:
        return float(distances[0])
    return float(min(1 / found.quantile(1 / possible), distances[0]))


def _pair_distances(
    rows: Tensor, classes: Tensor, pairs: int, generator: torch.Generator
) -> tuple[NDArray[np.float64], float]:
    """Ascending distances of differently labelled pairs, and how many of these pairs there are in all."""
    counts = classes.bincount().double()
    possible = float((len(rows) ** 2 - counts.square().sum()) / 2)
    if len(rows) <= ENUMERATED:
        first, second = torch.triu_indices(len(rows), len(rows), 1)
    else:
        draws = round(pairs * len(rows) ** 2 / (2 * possible))
        first, second = torch.randint(len(rows), (2, draws), generator=generator)
    apart = classes[first] != classes[second]
    first, second = first[apart], second[apart]
    size = max(1, PAIRS_AT_A_TIME // rows.shape[1])
    found = torch.cat([
        (rows[a] - rows[b]).double().square().sum(1).sqrt()
        for a, b in zip(first.split(size), second.split(size), strict=True)
    ])  # fmt: skip
    return found.sort().values.numpy(), possible
