"""How far apart checkpoints are: distances, angles, norms; tensors are read once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint
from unseen.merging.memory import Source, is_merged


@dataclass(frozen=True)
class Geometry:
    """Of K models; angles are between the vectors from the base (from 0 without one)."""

    distance: Tensor
    """(K, K), Euclidean."""
    cosine: Tensor
    """(K, K); not a number where a vector is 0."""
    norm: Tensor
    """(K,), of the vectors from the base."""

    @property
    def angle(self) -> Tensor:
        """(K, K), in degrees."""
        return self.cosine.clamp(-1, 1).acos().rad2deg()


@torch.no_grad()
def compare(
    models: Sequence[Source], *, base: Source | None = None, include: Callable[[str], bool] | None = None
) -> Geometry:
    """Distances and angles over all floating-point tensors whose name `include` accepts (default all).

    Sums are in float64. Fine-tuned models have nearly the same direction from 0: give the base, as the angle
    of task vectors is what tells how well models merge (arXiv 2212.04089, 2403.19522).
    """
    opened = [open_checkpoint(model, f"model {index}") for index, model in enumerate(models)]
    if not opened:
        raise InputError("models", "are none", "Give one or more.")
    root = None if base is None else open_checkpoint(base, "the base")
    check_same_tensors([*opened, *([] if root is None else [root])])
    count = len(opened)
    products = torch.zeros(count, count, dtype=torch.float64)
    squares = torch.zeros(count, count, dtype=torch.float64)
    for name, info in opened[0].tensors.items():
        if not is_merged(info) or (include is not None and not include(name)):
            continue
        vectors = [model.read(name).double().reshape(-1) for model in opened]
        start = None if root is None else root.read(name).double().reshape(-1)
        for i in range(count):
            for j in range(i, count):
                squares[i, j] += (vectors[i] - vectors[j]).square().sum()
        deltas = torch.stack(vectors) if start is None else torch.stack([v - start for v in vectors])
        products += deltas @ deltas.T
    norm = products.diagonal().sqrt()
    distance = squares.sqrt()
    return Geometry(distance + distance.T, products / torch.outer(norm, norm), norm)
