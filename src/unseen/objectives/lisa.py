"""LISA: mix examples that share the label but not the domain, or the domain but not the label."""

from __future__ import annotations

from dataclasses import replace

import torch

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.mixing import check_alpha, mixup, random_partners
from unseen.objectives.targets import class_probabilities, likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "lisa",
    summary="Selective mixing: same label across domains, or same domain across labels",
    paper="Yao et al. 2022, arXiv 2201.00299",
    search={"alpha": ("choice", [0.5, 2.0]), "same_label": ("choice", [0.0, 0.25, 0.5, 0.75, 1.0])},
)
class LISA(Objective):
    """One lambda ~ Beta(alpha, alpha) a batch; with probability `same_label` partners have the same label and
    another domain (intra-label), else the same domain and another label (intra-domain). Algorithm 1.

    A mixed example keeps domain and weight of its first part; one without a partner stays as it is.
    """

    needs_domains = True

    def __init__(self, alpha: float = 2.0, same_label: float = 0.5):
        super().__init__()
        check_alpha(alpha)
        if not 0 <= same_label <= 1:
            raise InputError("same_label", f"is {same_label}", "Give a probability from 0 to 1.")
        self.alpha, self.same_label = alpha, same_label

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.classes = classes

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        labels = likeliest_class(batch.y)
        alike, together = labels.unsqueeze(1) == labels, batch.domain.unsqueeze(1) == batch.domain
        intra_label = float(torch.rand(1, generator=generator)) < self.same_label
        partner = random_partners(alike & ~together if intra_label else together & ~alike, generator)
        targets = class_probabilities(batch.y, self.classes, torch.float32)
        x, y, _ = mixup(batch.x, targets, self.alpha, generator, partner)
        return replace(batch, x=x, y=y)

    def forward(self, model: Network, batch: Batch) -> Loss:
        return Loss(example_losses(model(batch.x), batch).mean())
