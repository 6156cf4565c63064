"""A residual perceptron on frozen features, with a linear head: tuning without touching the encoder."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.registry import networks

Normalization = Literal["batch", "layer", "none"]


class ResidualTuner(nn.Module):
    """Features (B, D) plus a learned scale for each dimension times an MLP of them: (B, D).

    normalization  of the hidden layer: "batch" (the paper's) judges unseen domains by the statistics of the
                   training data, "layer" by each example's own
    """

    def __init__(
        self, size: int, hidden_ratio: float = 4.0, scale: float = 1.0, normalization: Normalization = "batch"
    ):
        super().__init__()
        hidden = max(1, round(hidden_ratio * size))
        layers: dict[str, type[nn.Module]] = {
            "batch": nn.BatchNorm1d,
            "layer": nn.LayerNorm,
            "none": nn.Identity,
        }
        if normalization not in layers:
            raise InputError("normalization", f"is {normalization!r}", "Give 'batch', 'layer' or 'none'.")
        self.mlp = nn.Sequential(
            nn.Linear(size, hidden), layers[normalization](hidden), nn.ReLU(), nn.Linear(hidden, size)
        )
        self.scale = nn.Parameter(torch.full((size,), float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        features = features.flatten(1)
        return features + self.scale * self.mlp(features)


@networks.register(
    "residual-tuner",
    summary="A residual perceptron on frozen features: what `nmtune` trains",
    paper="Chen et al. 2024, arXiv 2309.17002",
)
def residual_tuner(
    *,
    input_shape: Any,
    classes: int,
    hidden_ratio: float = 4.0,
    scale: float = 1.0,
    normalization: Normalization = "batch",
) -> Network:
    """`hidden_ratio` x D hidden units between features of D dimensions; the head reads D tuned features."""
    if isinstance(input_shape, dict):
        raise InputError(
            "residual-tuner", f"cannot read several inputs ({', '.join(input_shape)})", "Give one array."
        )
    size = math.prod(input_shape)
    return Network(ResidualTuner(size, hidden_ratio, scale, normalization), size, classes)
