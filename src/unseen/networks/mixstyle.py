"""MixStyle: in training, feature maps take on statistics between their own and another example's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.registry import Spec, networks

EPSILON = 1e-6


def mix_styles(maps: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """(B, C, H, W) maps with channel means and deviations of `share` (B, 1, 1, 1) their own and the rest those of
    `partner` (B,) (equations 4 to 6). The statistics carry no gradient (algorithm 1).
    """
    mean = maps.mean((2, 3), keepdim=True).detach()
    deviation = (maps.var((2, 3), keepdim=True) + EPSILON).sqrt().detach()
    mixed_mean = share * mean + (1 - share) * mean[partner]
    mixed_deviation = share * deviation + (1 - share) * deviation[partner]
    return (maps - mean) / deviation * mixed_deviation + mixed_mean


class MixStyle(nn.Module):
    """`mix_styles` with a random partner and shares ~ Beta(alpha, alpha), in a share `probability` of batches.

    Draws from torch's generator, as dropout does, and in training mode alone.
    """

    def __init__(self, probability: float, alpha: float):
        super().__init__()
        self.probability, self.alpha = probability, alpha

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training or float(torch.rand(())) >= self.probability:
            return maps
        count = len(maps)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((count, 1, 1, 1)).to(maps)
        return mix_styles(maps, torch.randperm(count).to(maps.device), share)


@networks.register(
    "mixstyle",
    summary="A convolutional network whose feature maps exchange their statistics in training",
    paper="Zhou et al. 2021, arXiv 2104.02008",
)
def mixstyle(
    *, input_shape: Any, classes: int, base: str = "cnn", probability: float = 0.5, alpha: float = 0.1
) -> Network:
    """`MixStyle` after the first and the second of three stages of `base`, a "cnn" or "resnet" with options.

    Partners are drawn from the whole batch, whose examples are of all training domains ("random shuffle" in the
    paper). Defaults are the paper's. Vectors have no maps whose statistics could be a style: an error.
    """
    spec = Spec.of(base)
    if isinstance(input_shape, dict) or len(input_shape) != 3:
        raise InputError(
            "mixstyle",
            f"mixes statistics of feature maps, which inputs of shape {input_shape} have not",
            "It takes images; for vectors choose mixup or sagnet.",
        )
    if spec.name not in ("cnn", "resnet"):
        raise InputError(f"base {base!r}", "is not cut into stages", "Choose cnn or resnet.")
    if not (0 <= probability <= 1 and alpha > 0):
        raise InputError(
            "probability or alpha",
            f"are {probability} and {alpha}",
            "Give a probability from 0 to 1, and an alpha above 0.",
        )
    inner = networks.build(spec, input_shape=input_shape, classes=classes)
    layers = list(inner.featurizer.children())
    first, length = (0, 3) if spec.name == "cnn" else (1, (len(layers) - 5) // 3)
    for stage in (2, 1):  # from the back, so that places before stay what they are
        layers.insert(first + stage * length, MixStyle(probability, alpha))
    return Network(nn.Sequential(*layers), inner.features, classes)
