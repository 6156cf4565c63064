"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from unseen.averaging.base import Averaging, StateDict
from unseen.registry import averaging


@averaging.register(
    "ema",
    summary="Exponential moving average of the weights",
    paper="Polyak & Juditsky 1992; Tarvainen & Valpola 2017, arXiv 1703.01780",
)
class EMA(Averaging):
    """mean <- d mean + (1 - d) weights, d = min(decay, (1 + step) / (10 + step)): early steps fade fast."""

    elementwise = True

    def __init__(self, decay: float = 0.99):
        self.decay = decay
        self.mean: StateDict = {}

    @torch.no_grad()
    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if name not in self.mean or not value.is_floating_point():
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name].lerp_(value, 1 - decay)

    def result(self) -> StateDict | None:
        return self.mean or None
