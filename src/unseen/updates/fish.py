"""Fish: walk through the domains one after the other, then go part of the way."""

from __future__ import annotations

import torch

from unseen.objectives import Loss
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.updates.base import LossFunction, UpdateRule
from unseen.updates.domains import pooled, present_domains, shuffled


@updates.register(
    "fish",
    summary="Walk through the domains in turn and go part of the way: their gradients come to agree",
    paper="Shi et al. 2022, arXiv 2104.09937",
    search={"meta_rate": ("choice", [0.05, 0.1, 0.5])},
)
class Fish(UpdateRule):
    """theta <- theta + meta_rate (theta' - theta), theta' after one optimizer step per domain (algorithm 1).

    The optimizer of the learner takes the inner steps and keeps its moments from update to update; weight
    decay and the limit of the gradient norm act in each of them. Domains take turns in random order, decided
    by `seed` and the step. The loss returned is the mean over the walk, each domain's where the walk met it.
    """

    def __init__(self, meta_rate: float = 0.5, seed: int = 0):
        self.meta_rate, self.seed = meta_rate, seed

    def step(self, loss_function: LossFunction, batch: Batch) -> Loss:
        domains = shuffled(present_domains(batch, "fish"), self.seed, batch.step)
        start = [parameter.detach().clone() for parameter in self.parameters]
        losses, sizes = [], []
        for domain in domains:
            part = batch.of_domain(domain)
            losses.append(self.gradient(loss_function, part))
            sizes.append(len(part))
            self.apply()
        with torch.no_grad():
            torch._foreach_lerp_(self.parameters, start, 1 - self.meta_rate)
        return pooled(losses, sizes)
