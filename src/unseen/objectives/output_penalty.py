"""TRPO, MESA, R3F: a penalty on how far the outputs move, from before or under noise on the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.penalty import PenaltySchedule
from unseen.objectives.trust_region import ReferenceFunction, TrustRegion
from unseen.registry import objectives
from unseen.shifts import Batch

_SEARCH = {"penalty_weight": ("log", 1e-2, 1e1)}


@objectives.register(
    "trpo",
    summary="Keep the outputs close to those before the last update",
    paper="Schulman et al. 2015, arXiv 1502.05477, as a penalty: Sherborne et al. 2024, arXiv 2310.03646",
    search=_SEARCH,
)
@objectives.register(
    "pretrained-kl",
    summary="Keep the outputs close to those of the network that training began from",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
    preset={"reference": "pretrained"},
    search=_SEARCH,
)
@objectives.register(
    "mesa",
    summary="Keep the outputs close to those of a moving average of past parameters",
    paper="Du et al. 2022, arXiv 2205.14083; as here: Sherborne et al. 2024, arXiv 2310.03646",
    preset={"reference": "ema"},
    search={**_SEARCH, "decay": ("choice", [0.99, 0.995, 0.999])},
)
@objectives.register(
    "r3f",
    summary="Alike outputs with and without noise on the inputs",
    paper="Aghajanyan et al. 2021, arXiv 2008.03156",
    preset={"reference": "input_noise", "divergence": "sym_kl"},
    search={**_SEARCH, "sigma": ("log", 1e-2, 1.0)},
)
class OutputPenalty(Objective):
    """Mean loss over all examples + weight * divergence from a reference; see `TrustRegion` for its options.

    Defaults are those of TRAM's comparisons: weight 0.1, sigma 0.1, decay 0.999. MESA's own penalty softens the
    outputs by a temperature and starts after some epochs; R3F's own noise has a scale of 1e-5 on embeddings.
    An update is told by its `batch.step`: the reference stays the same while a rule evaluates its batch again.
    In the first update a reference made of parameters is the network itself, so the penalty is zero.
    """

    step: Tensor
    region: TrustRegion

    def __init__(
        self,
        penalty_weight: float = 0.1,
        reference: str | ReferenceFunction = "previous",
        divergence: str = "kl",
        sigma: float = 0.1,
        decay: float = 0.999,
        noise_seed: int = 0,
    ):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight)
        self.region = TrustRegion(reference, divergence, sigma, decay, noise_seed)
        self.register_buffer("step", torch.tensor(-1))

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not batch.repeat and self._begins(batch):
            self.region.observe(model)
        risk = example_losses(model(batch.x), batch).mean()
        divergence: Tensor = self.region(model, batch)
        total = risk + self.schedule.weight_at(batch.step) * divergence
        return Loss(total, {"risk": risk, "divergence": divergence})

    def _begins(self, batch: Batch) -> bool:
        """Whether this is the first evaluation of an update."""
        begins = int(self.step) != batch.step
        self.step.fill_(batch.step)
        return begins
