"""Maximum classifier discrepancy: two heads agree on examples and disagree on known outliers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.hypotheses import Hypotheses, with_heads
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_weights
from unseen.objectives.outlier_exposure import outliers_of
from unseen.objectives.penalty import from_step
from unseen.registry import objectives
from unseen.shifts import Batch


def head_discrepancy(logits: Tensor) -> Tensor:
    """(B,) sum_k |p1_k - p2_k| of two heads' probabilities, from 0 to 2; logits (2, B, C). Higher = unfamiliar."""
    first, second = logits.softmax(-1)
    return (first - second).abs().sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """(..., B) entropy of softmax probabilities in nats; logits (..., B, C)."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


@objectives.register(
    "mcd",
    summary="Two heads whose entropies differ on known outliers",
    paper="Yu and Aizawa 2019, arXiv 1908.04951",
    search={"weight": ("log", 0.1, 10.0), "margin": ("choice", [0.6, 1.2, 2.4])},
)
class MCD(Objective):
    """Cross-entropy of both heads + weight * max(0, margin - mean(H(p1) - H(p2))) over the outliers.

    margin        in nats; 1.2 in the paper
    warmup_steps  updates with cross-entropy alone; the paper comes to the second term after training
    The network answers with the mean of both heads' logits; the paper's score is `head_discrepancy`, the detector
    "deep-ensemble(by='discrepancy')". The paper's second set is unlabelled and holds examples of the classes, too.
    """

    needs_outliers = True

    def __init__(self, weight: float = 1.0, margin: float = 1.2, warmup_steps: int = 0):
        super().__init__()
        check_weights(weight)
        if not margin > 0:
            raise InputError("margin", f"is {margin}", "Give a positive number of nats.")
        if warmup_steps < 0:
            raise InputError("warmup_steps", f"is {warmup_steps}", "Give a number of steps from 0.")
        self.weight, self.margin, self.warmup_steps = weight, margin, warmup_steps

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        return with_heads(build(), 2)

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(model, Hypotheses)
        risk = torch.stack([example_losses(own, batch).mean() for own in model.all_logits(batch.x)]).sum()
        first, second = entropy(model.all_logits(outliers_of("mcd", batch)))
        discrepancy = torch.relu(self.margin - (first - second).mean())
        weight = from_step(self.warmup_steps, batch.step, self.weight, 0.0)
        return Loss(risk + weight * discrepancy, {"risk": risk, "discrepancy": discrepancy})
