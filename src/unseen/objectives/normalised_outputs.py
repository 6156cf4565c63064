"""LogitNorm and T2FNorm: cross-entropy of logits or features of a fixed norm, which confidence cannot inflate."""

from __future__ import annotations

import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError("temperature", f"is {temperature}", "Give a positive number.")


@objectives.register(
    "logitnorm",
    summary="Cross-entropy of logits divided by their norm",
    paper="Wei et al. 2022, arXiv 2205.09310",
    search={"temperature": ("choice", [0.005, 0.01, 0.02, 0.03, 0.04, 0.05])},
)
class LogitNorm(Objective):
    """Cross-entropy of f(x) / (temperature * (|f(x)| + 1e-7)): only the logits' direction is trained.

    Its scores (such as the maximum softmax probability) are those of the plain logits.
    """

    def __init__(self, temperature: float = 0.04):
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        norms = logits.norm(dim=-1, keepdim=True) + 1e-7
        return Loss(example_losses(logits / norms / self.temperature, batch).mean())


@objectives.register(
    "t2fnorm",
    summary="Features are divided by their norm in training and not afterwards",
    paper="Regmi et al. 2023, arXiv 2305.17797",
    search={"temperature": ("choice", [0.05, 0.1, 0.2, 0.4])},
)
class T2FNorm(Objective):
    """Cross-entropy of head(h / (temperature * |h|)) for features h; the result answers with head(h / temperature).

    After the training the head's weights are divided by the temperature, as the published scores want it: norms of
    features, which training left free, then tell the unfamiliar.
    """

    needs_features = True

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, model: Network, batch: Batch) -> Loss:
        unit = nn.functional.normalize(model.featurizer(batch.x), dim=-1)
        return Loss(example_losses(model.head(unit / self.temperature), batch).mean())

    def finish(self, stage: Stage) -> None:
        with torch.no_grad():
            stage.network.head.weight /= self.temperature
