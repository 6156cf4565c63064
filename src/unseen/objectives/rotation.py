"""RotPred: the features must also tell by how much an input was turned."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_weights
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import Inputs

TURNS = 4


def turned(x: Inputs) -> list[Tensor]:
    """Four copies of inputs, the first as they are: square images (B, channels, S, S) at quarter turns; rows
    (B, D) under fixed random rotations of their space (Bergman and Hoshen 2020, arXiv 2005.02359).
    """
    if not isinstance(x, Tensor) or x.dim() not in (2, 4) or (x.dim() == 4 and x.shape[2] != x.shape[3]):
        what = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else "several tensors"
        raise InputError("inputs to turn", f"are {what}", "Give square images or rows of numbers.")
    if x.dim() == 4:
        return [torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)]
    return [x, *(x @ torch.from_numpy(q).to(x) for q in _rotations(x.shape[1]))]


@lru_cache(maxsize=16)
def _rotations(size: int) -> tuple[np.ndarray, ...]:
    draws = np.random.default_rng(0).normal(size=(TURNS - 1, size, size))
    return tuple(np.linalg.qr(draw)[0] for draw in draws)


@objectives.register(
    "rotpred",
    summary="A second head tells by how much each input was turned",
    paper="Hendrycks et al. 2019, arXiv 1906.12340",
    search={"weight": ("log", 0.1, 2.0)},
)
class RotPred(Objective):
    """Cross-entropy of the classes + weight * mean cross-entropy of the turn of all four `turned` copies.

    weight  0.5 in the paper
    The head that tells turns is the objective's own and is not kept: what it gave the features is.
    """

    needs_features = True

    def __init__(self, weight: float = 0.5):
        super().__init__()
        check_weights(weight)
        self.weight = weight

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.turn = nn.Linear(features, TURNS)

    def forward(self, model: Network, batch: Batch) -> Loss:
        copies = turned(batch.x)
        features = model.featurizer(torch.cat(copies))
        count = len(batch)
        risk = example_losses(model.head(features[:count]), batch).mean()
        turns = torch.arange(TURNS, device=features.device).repeat_interleave(count)
        penalty = nn.functional.cross_entropy(self.turn(features), turns)
        return Loss(risk + self.weight * penalty, {"risk": risk, "penalty": penalty})
