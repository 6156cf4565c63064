"""Graph isomorphism networks on padded graphs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks.base import Network
from unseen.registry import networks

READOUTS = ("sum", "mean")


class _Isomorphism(nn.Module):
    """Layers MLP((1 + eps) h + sum of neighbours' h) with learned eps; nodes are summed or averaged at the end."""

    def __init__(self, size: int, width: int, depth: int, readout: str):
        super().__init__()
        self.readout = readout
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(size if i == 0 else width, width), nn.ReLU(), nn.Linear(width, width))
            for i in range(depth)
        )
        self.eps = nn.Parameter(torch.zeros(depth))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        nodes, mask = x["nodes"], x["mask"].unsqueeze(-1)
        for layer, eps in zip(self.layers, self.eps, strict=True):
            nodes = torch.relu(layer((1 + eps) * nodes + x["adjacency"] @ nodes)) * mask
        found = nodes.sum(1)
        if self.readout == "mean":
            return found / mask.sum(1).clamp(min=1)
        # a fixed scale: sums over whole graphs would start two orders above what the head expects
        return found / x["mask"].shape[1]


@networks.register(
    "gin",
    summary="Graph isomorphism network on padded graphs, which counts what a GCN averages",
    paper="Xu et al. 2019, arXiv 1810.00826",
)
def gin(
    *,
    input_shape: Any,
    classes: int,
    width: int = 32,
    depth: int = 3,
    readout: Literal["sum", "mean"] = "sum",
) -> Network:
    """`readout` "sum" sees a graph's size (up to the fixed size of the padding), "mean" does not."""
    if not isinstance(input_shape, dict) or "nodes" not in input_shape:
        raise InputError("gin", f"cannot read inputs of shape {input_shape}", "It takes graphs.")
    if readout not in READOUTS:
        raise InputError("readout", f"is {readout!r}", nearest(readout, READOUTS))
    return Network(_Isomorphism(input_shape["nodes"][-1], width, depth, readout), width, classes)
