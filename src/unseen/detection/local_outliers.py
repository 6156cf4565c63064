"""Density around a feature compared with the density around its neighbours among the training features."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.detection.mahalanobis import squared_distances
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 1024
"""Rows that are compared with all training features at a time."""


def nearest(points: Tensor, bank: Tensor, k: int, *, own: bool = False) -> tuple[Tensor, Tensor]:
    """(N, k) Euclidean distances, float64, and rows of the k nearest of `bank`; `own`: points are the bank itself."""
    distances, rows = [], []
    # an exported graph takes any number of points, but a loop over them would fix how many blocks there are
    for number, part in enumerate([points] if torch.compiler.is_exporting() else points.split(BLOCK)):
        found = squared_distances(part, bank)
        if own:
            here = torch.arange(len(part), device=part.device)
            found[here, here + number * BLOCK] = torch.inf
        chosen = found.topk(k, 1, largest=False).indices
        # not from the product: it would lose the distance between inputs that are nearly equal
        exact = (part[:, None].to(found.dtype) - bank[chosen].to(found.dtype)).norm(dim=2)
        distances.append(exact)
        rows.append(chosen)
    return torch.cat(distances), torch.cat(rows)


class LocalOutliers(Detector):
    """k neighbours of each input among at most `largest` training features (a larger bank is thinned evenly)."""

    features: Tensor

    def __init__(self, k: int = 20, largest: int = 10_000):
        super().__init__()
        if k < 1:
            raise InputError("k", f"is {k}", "Give one neighbour at least.")
        self.k, self.largest = k, largest

    def _training(self, bank: Bank) -> Tensor:
        features = require_finite(bank.features, "features").float()
        if len(features) > self.largest:
            features = features[torch.linspace(0, len(features) - 1, self.largest).long()]
        if self.k >= len(features):
            raise InputError(
                "k",
                f"is {self.k} with {len(features)} training features, of which none is its own neighbour",
                f"Choose k up to {max(1, len(features) - 1)}, or fit on more.",
            )
        return features


@detectors.register(
    "lof",
    summary="Minus the local outlier factor: how much denser the neighbours' surroundings are",
    paper="Breunig et al. 2000, SIGMOD",
    search={"k": ("integer", 5, 50)},
)
class LocalOutlierFactor(LocalOutliers):
    """Minus the mean local reachability density of the k nearest training features over the input's own."""

    reach: Tensor
    density: Tensor

    def fit(self, bank: Bank) -> Self:
        features = self._training(bank)
        distances, rows = nearest(features, features, self.k, own=True)
        reach = distances[:, -1]
        self.keep(
            bank, features=features, reach=reach.float(), density=_density(distances, reach[rows]).float()
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        points = require_finite(bank.features, "features").float()
        distances, rows = nearest(points, self.features, self.k)
        own = _density(distances, self.reach[rows].to(distances.dtype))
        return -(self.density[rows].to(own.dtype).mean(1) / own).float()


def _density(distances: Tensor, reach: Tensor) -> Tensor:
    """(N,) one over the mean reachability distance of the neighbours."""
    return 1 / (torch.maximum(distances, reach).mean(1) + 1e-10)


@detectors.register(
    "loop",
    summary="Minus how much sparser a feature's surroundings are than its neighbours' (local outlier probability)",
    paper="Kriegel et al. 2009, CIKM (LoOP)",
    search={"k": ("integer", 5, 50)},
)
class LocalOutlierProbability(LocalOutliers):
    """Minus 1 + PLOF, the root mean square distance to the k neighbours over the mean of theirs.

    The local outlier probability is max(0, erf(PLOF / (nPLOF sqrt 2))): it orders inputs alike, but gives all that
    are no sparser than their neighbours 0, and all far ones 1.
    """

    spread: Tensor

    def fit(self, bank: Bank) -> Self:
        features = self._training(bank)
        distances, _ = nearest(features, features, self.k, own=True)
        self.keep(bank, features=features, spread=_spread(distances).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        points = require_finite(bank.features, "features").float()
        distances, rows = nearest(points, self.features, self.k)
        own = _spread(distances)
        return -(own / self.spread[rows].to(own.dtype).mean(1)).float()


def _spread(distances: Tensor) -> Tensor:
    """(N,) root mean square distance to the neighbours, kept off zero where inputs are repeated."""
    return distances.square().mean(1).sqrt().clamp(min=1e-10)
