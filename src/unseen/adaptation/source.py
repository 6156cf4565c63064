"""No adaptation: what every method is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.adaptation.base import Adaptation
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


@adaptation.register("source", summary="No adaptation: the network as it was trained")
class Source(Adaptation):
    @torch.no_grad()
    def answer(self, x: Inputs) -> Tensor:
        return self.network(x)
