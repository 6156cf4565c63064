"""Feature maps inside an image encoder: what a dense task reads where a classifier reads the pooled vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError

FINEST = 40
"""Places a side at most: stride 8 of the usual input sizes. Finer maps cost most and tell least of what is seen."""
MOST_EXTRA_TOKENS = 8
"""Class and register tokens that may come before the tokens of places."""


def feature_maps(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps (B, C, side, side) of square images (B, ...), finest first, with gradients where the caller allows them.

    They are the result of the encoder's method `feature_maps`, where it has one. Otherwise its modules are watched
    during a pass. At each resolution the last output counts, and among modules inside one another the outermost, so
    that blocks come before the layers in them; from the coarsest map on, each has about twice the side of the one
    before, which leaves out what is padded or cut on the way. Tokens (B, places, C), after class and register
    tokens, and channels-last maps are brought to the same form.
    Raises InputError for an encoder without any map of 2 to `FINEST` places a side.
    """
    own = getattr(encoder, "feature_maps", None)
    found = list(own(images)) if callable(own) else _watched(encoder, images)
    for each in found:
        if each.dim() != 4 or len(each) != len(images) or each.shape[2] != each.shape[3]:
            problem = f"gives a map of shape {tuple(each.shape)} for {len(images)} images"
            raise InputError("encoder's feature_maps", problem, "Give (images, channels, side, side).")
    if not found:
        raise InputError(
            f"encoder {type(encoder).__name__}",
            f"gives no feature map of 2 to {FINEST} places a side",
            "Give it a method feature_maps(images) with maps (images, channels, side, side), finest first.",
        )
    return sorted(found, key=lambda each: -each.shape[2])


def _watched(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    kept: dict[int, tuple[int, Tensor]] = {}

    def watch(depth: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(output, Tensor) or len(output) != len(images):
                return
            found = _as_map(output)
            if found is not None and depth <= kept.get(found.shape[2], (depth,))[0]:
                kept[found.shape[2]] = (depth, found)

        return hook

    handles = [
        module.register_forward_hook(watch(len(name.split(".")))) for name, module in encoder.named_modules()
    ]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    side = min((side for side in kept if 2 <= side <= FINEST), default=None)
    found = []
    while side is not None:
        found.append(kept[side][1])
        doubled = [s for s in (2 * side, 2 * side - 1, 2 * side + 1) if s in kept and s <= FINEST]
        side = min(doubled, key=lambda s: kept[s][0], default=None)
    return found


def _as_map(output: Tensor) -> Tensor | None:
    """(B, C, side, side) of a map with channels first or last, or of tokens; None for anything else."""
    if output.dim() == 4:
        if output.shape[2] == output.shape[3]:
            return output
        return output.permute(0, 3, 1, 2) if output.shape[1] == output.shape[2] else None
    if output.dim() != 3:
        return None
    for extra in range(min(MOST_EXTRA_TOKENS + 1, output.shape[1])):
        side = math.isqrt(output.shape[1] - extra)
        if side * side == output.shape[1] - extra:
            return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return None


@dataclass(frozen=True)
class StoredMaps:
    """Feature maps of N images, computed once.

    rows    (N, sum of C side^2), in memory or mapped from disk
    shapes  (C, side) of each map
    """

    rows: np.ndarray
    shapes: Sequence[tuple[int, int]]

    def take(self, rows: Tensor) -> list[Tensor]:
        """Maps, float (B, C, side, side), of the given rows, an int64 tensor (B,)."""
        chosen = torch.from_numpy(self.rows[rows.numpy()]).float()
        parts = chosen.split([channels * side * side for channels, side in self.shapes], 1)
        return [
            part.reshape(-1, channels, side, side)
            for part, (channels, side) in zip(parts, self.shapes, strict=True)
        ]
