"""LISA: mix examples that share the label but not the domain, or the domain but not the label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.targets import class_probabilities, likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import map_tensors


def random_partners(admissible: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) for each row of `admissible` (B, B) one of its True columns, uniformly; itself if there is none."""
    keys = torch.rand(admissible.shape, generator=generator).to(admissible.device)
    chosen = keys.masked_fill(~admissible, -1).argmax(1)
    itself = torch.arange(len(admissible), device=admissible.device)
    return torch.where(admissible.any(1), chosen, itself)


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
        if not alpha > 0:
            raise InputError("alpha", f"is {alpha}", "Give a positive number.")
        if not 0 <= same_label <= 1:
            raise InputError("same_label", f"is {same_label}", "Give a probability from 0 to 1.")
        self.alpha, self.same_label = alpha, same_label

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.classes = classes

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        random = np.random.default_rng(seed)  # torch.distributions takes no generator
        share = float(random.beta(self.alpha, self.alpha))
        labels = likeliest_class(batch.y)
        alike, together = labels.unsqueeze(1) == labels, batch.domain.unsqueeze(1) == batch.domain
        intra_label = random.random() < self.same_label
        partner = random_partners(alike & ~together if intra_label else together & ~alike, generator)
        targets = class_probabilities(batch.y, self.classes, torch.float32)

        def mixed(values: Tensor) -> Tensor:
            return share * values + (1 - share) * values[partner]

        return replace(batch, x=map_tensors(mixed, batch.x), y=mixed(targets))

    def forward(self, model: Network, batch: Batch) -> Loss:
        return Loss(example_losses(model(batch.x), batch).mean())
