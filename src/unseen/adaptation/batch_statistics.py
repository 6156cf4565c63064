"""Batch normalisation by the statistics of the test batch, alone or mixed with those of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.adaptation.base import Adaptation
from unseen.adaptation.normalisation import use_test_statistics
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


@adaptation.register(
    "bn-batch",
    summary="Batch normalisation by the statistics of the test batch alone",
    paper="Nado et al. 2020, arXiv 2006.10963",
)
@adaptation.register(
    "bn-mixed",
    summary="Batch normalisation by statistics of the test batch and of training, mixed",
    paper="Schneider et al. 2020, arXiv 2006.16971",
    preset={"prior": 16.0},
    search={"prior": ("log", 1.0, 256.0)},
)
class BatchStatistics(Adaptation):
    """Nothing is learnt: each batch is normalised by itself.

    prior   examples that the statistics of training count for, from 0; the smaller the batches, the more
    Raises InputError for a network without batch normalisation.
    """

    def __init__(self, network: nn.Module, prior: float = 0.0, *, seed: int = 0):
        self.prior = prior
        super().__init__(network, seed=seed)

    def _configure(self) -> None:
        if not use_test_statistics(self.network, self.prior):
            raise InputError(
                f"network {type(self.network).__name__}",
                "has no batch normalisation, so there are no statistics to adapt",
                "Choose tent, which learns scales and shifts of any normalisation, or lame.",
            )

    @torch.no_grad()
    def answer(self, x: Inputs) -> Tensor:
        return self.network(x)
