"""L2-SP: weight decay towards the weights that fine-tuning starts from, instead of towards zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "l2-sp",
    summary="Keep pretrained weights close to where they started",
    paper="Li et al. 2018, arXiv 1802.01483",
    search={"penalty_weight": ("log", 1e-3, 1e0), "head_weight": ("choice", [0.0, 0.01])},
)
class L2SP(Objective):
    """Risk + penalty_weight / 2 |w - w_0|^2 + head_weight / 2 |v|^2 (eqs. 2 and 3).

    w are the featurizer's parameters that are trained, w_0 their values before training, v those of the head,
    which is new and decays towards zero. Leave the optimizer's `weight_decay` at 0, which pulls w to zero.
    """

    def __init__(self, penalty_weight: float = 0.1, head_weight: float = 0.01):
        super().__init__()
        self.schedule = PenaltySchedule(penalty_weight)
        if not head_weight >= 0:
            raise InputError("head_weight", f"is {head_weight}", "Give a number from 0, such as 0.01.")
        self.head_weight = head_weight
        self.register_buffer("taken", torch.tensor(False))

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        network = build()
        for index, value in enumerate(network.featurizer.parameters()):
            self.register_buffer(f"start_{index}", value.detach().clone())
        return network

    @torch.no_grad()
    def _take_start(self, model: Network) -> None:
        """A run's first evaluation is at the weights that it begins from; they may be given, not built."""
        for index, parameter in enumerate(model.featurizer.parameters()):
            start = self.get_buffer(f"start_{index}")
            start.copy_(torch.where(self.get_buffer("taken"), start, parameter))
        self.get_buffer("taken").fill_(True)

    def forward(self, model: Network, batch: Batch) -> Loss:
        if batch.step == 0 and not batch.repeat:
            self._take_start(model)
        risk = example_losses(model(batch.x), batch).mean()
        distance, size = torch.zeros_like(risk), torch.zeros_like(risk)
        for index, parameter in enumerate(model.featurizer.parameters()):
            if parameter.requires_grad:
                distance = distance + (parameter - self.get_buffer(f"start_{index}")).square().sum()
        for parameter in model.head.parameters():
            size = size + parameter.square().sum()
        weight = self.schedule.weight_at(batch.step)
        total = risk + weight / 2 * distance + self.head_weight / 2 * size
        return Loss(total, {"risk": risk, "distance": distance})
