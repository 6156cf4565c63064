"""The class shares that hypotheses should show on unlabelled examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.objectives.targets import class_probabilities
from unseen.shifts import Batch


class LabelPrior(nn.Module):
    """Given class shares (C,), or the shares of the labels seen in training so far.

    Raises `InputError` when given shares are negative, not one a class, or do not sum to one, and for a single
    class, of which no two hypotheses can think differently.
    """

    counts: Tensor

    def __init__(self, given: Sequence[float] | None, classes: int):
        super().__init__()
        if classes < 2:
            raise InputError("classes", f"are {classes}", "Hypotheses can differ on two classes or more.")
        if given is not None and (len(given) != classes or min(given) < 0 or abs(sum(given) - 1) > 1e-6):
            raise InputError(
                f"label_prior {tuple(given)}",
                f"is not a distribution over {classes} classes",
                f"Give {classes} shares from 0 that sum to 1, or None for the training labels'.",
            )
        self.given = None if given is None else tuple(given)
        self.register_buffer("counts", torch.zeros(classes) if given is None else torch.tensor(self.given))

    def forward(self, batch: Batch) -> Tensor:
        """(C,) shares that sum to one, those of the batch's labels counted."""
        if self.given is not None:
            return self.counts
        own = class_probabilities(batch.y, len(self.counts), self.counts.dtype).sum(0)
        if batch.repeat:  # these labels are counted already
            return self.counts / self.counts.sum()
        self.counts += own
        return self.counts / self.counts.sum()
