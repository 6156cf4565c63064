"""Distance to the k-th nearest training feature, by blocked matrix products."""

from __future__ import annotations

import warnings
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.detection.bank_parts import named_rows, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError, UnseenWarning
from unseen.networks import Bank
from unseen.registry import detectors


def kth_neighbour(queries: Tensor, bank: Tensor, k: int, block: int = 4096) -> Tensor:
    """(N,) row of `bank` (M, D) with the k-th largest inner product with each query; memory is one block."""
    found = []
    # an exported graph takes any number of queries, but a loop over them would fix how many blocks there are
    for part in [queries] if torch.compiler.is_exporting() else queries.split(block):
        similar, rows = part.new_zeros(len(part), 0), part.new_zeros(len(part), 0, dtype=torch.int64)
        for start in range(0, len(bank), 4 * block):
            others = part @ bank[start : start + 4 * block].T
            best, where = others.topk(min(k, others.shape[1]), 1)
            similar, rows = torch.cat([similar, best], 1), torch.cat([rows, where + start], 1)
            similar, kept = similar.topk(min(k, similar.shape[1]), 1)
            rows = rows.gather(1, kept)
        found.append(rows[:, -1])
    return torch.cat(found)


@detectors.register(
    "knn",
    summary="Distance to the k-th nearest training feature on the unit sphere",
    paper="Sun et al. 2022, arXiv 2204.06507",
    search={"k": ("choice", [1, 5, 10, 20, 50, 100, 200])},
)
class NearestNeighbours(Detector):
    """Minus the Euclidean distance between unit vectors, from -2 to 0.

    Features of norm zero have no direction to be near to: they score -2 and are not kept, with a warning that names
    them. Raises `InputError` where all are of norm zero, and for k beyond those that are kept.

    k        neighbours; None takes 1 % of the bank, from 1 to 50
    largest  rows kept; a larger bank is thinned evenly (a 1 % bank loses less than a point of AUROC there)
    """

    bank: Tensor

    def __init__(self, k: int | None = None, largest: int = 10_000):
        super().__init__()
        self.k, self.largest = k, largest

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        features = require_finite(bank.features, "features").float()
        nowhere = features.norm(dim=1) == 0
        if nowhere.all():
            raise InputError("features", "all have norm zero", "Check the network: they say nothing.")
        _tell(nowhere, "they are not kept")
        rows = (~nowhere).nonzero().flatten()
        if self.k is not None and not 1 <= self.k <= len(rows):
            raise InputError(
                "k", f"is {self.k} with {len(rows)} training features", "Choose k within the bank."
            )
        if len(rows) > self.largest:
            rows = rows[torch.linspace(0, len(rows) - 1, self.largest).long()]
        self.keep(bank, bank=normalize(features[rows], dim=1))
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        features = require_finite(bank.features, "features").float()
        nowhere, queries = features.norm(dim=1) == 0, normalize(features, dim=1)
        _tell(nowhere, "they score as the least familiar")
        k = self.k or min(50, max(1, len(self.bank) // 100))
        neighbour = self.bank[kth_neighbour(queries, self.bank, min(k, len(self.bank)))]
        # not from the inner product: float32 would make half a thousandth of the distance between equal inputs
        return -(queries - neighbour).norm(dim=1).masked_fill(nowhere, 2.0)


def _tell(nowhere: Tensor, outcome: str) -> None:
    """Warn of features of norm zero; an exported graph cannot."""
    if not torch.compiler.is_exporting() and nowhere.any():
        problem = f"features have norm zero, and so no direction, in {named_rows(nowhere)}: {outcome}"
        warnings.warn(problem, UnseenWarning, stacklevel=3)
