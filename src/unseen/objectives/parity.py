"""Demographic parity as a penalty: groups should get the same mean prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch


def parity_gap(probabilities: Tensor, group: Tensor, groups: int) -> Tensor:
    """Squared distance of groups' mean probabilities (B, C) from the mean of all, averaged over present groups."""
    member = nn.functional.one_hot(group, groups).to(probabilities.dtype)
    counts = member.sum(0)
    means = member.T @ probabilities / counts.clamp(min=1).unsqueeze(1)
    apart = (means - probabilities.mean(0)).square().sum(1)
    present = (counts > 0).to(apart.dtype)
    return (apart * present).sum() / present.sum()


@objectives.register(
    "parity",
    summary="Cross-entropy and a penalty on what groups' mean predictions differ by",
    paper="Kamishima et al. 2012 and Zafar et al. 2017, demographic parity as a penalty",
    search={"penalty_weight": ("log", 1e-1, 1e1)},
)
class Parity(Objective):
    """Mean loss over all examples + weight * `parity_gap` of the groups (`batch.group`) in the batch.

    The simplest thing to do about fairness, and blind to causes. Data without groups has no penalty.
    groups  number of groups
    """

    def __init__(self, penalty_weight: float = 1.0, groups: int = 2):
        super().__init__()
        if not 0 <= penalty_weight < float("inf"):
            raise InputError("penalty_weight", f"is {penalty_weight}", "Give a finite weight from 0.")
        if groups < 2:
            raise InputError("groups", f"are {groups}", "Give the number of groups, from 2.")
        self.penalty_weight, self.groups = penalty_weight, groups

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        risk = example_losses(logits, batch).mean()
        if batch.group is None:
            return Loss(risk, {"risk": risk})
        probabilities = torch.softmax(full_precision(logits), 1)
        with torch.autocast(logits.device.type, enabled=False):
            penalty = parity_gap(probabilities, batch.group, self.groups)
        return Loss(risk + self.penalty_weight * penalty, {"risk": risk, "penalty": penalty})
