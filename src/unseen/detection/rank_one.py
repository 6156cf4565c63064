"""Energy of a network whose last map has lost its largest singular value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.networks.taps import as_map, tapped
from unseen.registry import detectors


def without_rank_one(output: Tensor) -> Tensor:
    """A map (B, C, H, W) or tokens (B, P, C) minus the rank-one matrix of the largest singular value of each."""
    matrix = as_map(output.float())
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rest = matrix - values[:, :1, None] * left[:, :, :1] @ right[:, :1]
    return (rest.mT if output.dim() == 3 else rest.view(output.shape)).to(output.dtype)


@detectors.register(
    "rankfeat",
    summary="Energy after the last map lost its largest singular value",
    paper="Song et al. 2022, arXiv 2209.08590",
)
class RankFeat(Detector):
    """Log-sum-exp of the logits that the network gives when the matrix of rank one is taken from its last map.

    The paper adds the same of the block before; this is its variant for one block. For networks of convolutions or
    tokens. One more forward pass for every batch, and a singular value decomposition for every input.
    """

    needs_logits = True
    name = "rankfeat"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = [name for name, output in layers.items() if output.dim() > 2]
        if not maps:
            raise InputError(
                self.name, "needs a layer that is a map, and the network has none", "Choose cnn or resnet."
            )

        def change(name: str, output: Tensor) -> Tensor:
            return without_rank_one(output) if name == maps[-1] else output

        with tapped(network, change):
            return {self.name: network(inputs).float()}

    def score(self, bank: Bank) -> Tensor:
        require_finite(bank.logits, "logits")
        return self.seen(bank, self.name).logsumexp(1)
