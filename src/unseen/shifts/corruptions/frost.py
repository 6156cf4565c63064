"""Frosted window panes, drawn procedurally: needles of ice in random directions over a fractal cloud."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from unseen.shifts.corruptions.randomness import RandomStream

_DRAWN = 512
"""Side of a pane as drawn, in pixels: smaller and larger images get it resized."""

_PANES = (  # mean colour (red, green, blue) and contrast of the five published photographs
    ((0.30, 0.58, 0.65), 0.07),
    ((0.79, 0.81, 0.84), 0.09),
    ((0.79, 0.81, 0.84), 0.09),
    ((0.54, 0.60, 0.65), 0.11),
    ((0.44, 0.48, 0.53), 0.17),
)


@lru_cache(maxsize=8)
def frost_panes(side: int) -> Tensor:
    """(5, 3, 2 side, 2 side) panes in [0, 1] to cut images of `side` pixels from; always the same five."""
    stream = RandomStream(seed=0, ids=range(len(_PANES)))
    pattern = 0.6 * _standardised(_needles(stream)) + 0.4 * _standardised(_cloud(stream))
    pattern = F.interpolate(pattern, size=(2 * side, 2 * side), mode="bilinear", antialias=True)
    colours = torch.tensor([colour for colour, _ in _PANES])[:, :, None, None]
    contrasts = torch.tensor([contrast for _, contrast in _PANES])[:, None, None, None]
    return (colours + contrasts * _standardised(pattern)).clamp(0, 1)


def _standardised(pattern: Tensor) -> Tensor:
    return (pattern - pattern.mean((2, 3), keepdim=True)) / pattern.std((2, 3), keepdim=True)


def _cloud(stream: RandomStream) -> Tensor:
    """Sum of noise at doubling frequencies and halving strengths, (B, 1, side, side)."""
    octaves = [
        F.interpolate(stream.normal(1, cells, cells), size=(_DRAWN, _DRAWN), mode="bicubic") * 4 / cells
        for cells in (4, 8, 16, 32, 64, 128)
    ]
    return torch.stack(octaves).sum(0)


def _needles(stream: RandomStream, crystals: int = 400, layers: int = 3) -> Tensor:
    """Voronoi cells, each filled with streaks along a direction of its own, (B, 1, side, side)."""
    y, x = torch.meshgrid(torch.arange(_DRAWN), torch.arange(_DRAWN), indexing="ij")
    pixels = torch.stack([x, y], -1).view(-1, 2).float()
    total = torch.zeros(len(stream.ids), 1, _DRAWN, _DRAWN)
    for _ in range(layers):
        places = stream.uniform(crystals, 2, high=_DRAWN)
        angles = stream.uniform(crystals, high=torch.pi)
        profiles = stream.normal(crystals, 64)  # brightness across the streaks of a cell
        for pane in range(len(total)):
            cell = torch.cdist(pixels, places[pane]).argmin(1)
            offset = pixels - places[pane, cell]
            across = offset[:, 0] * angles[pane, cell].sin() - offset[:, 1] * angles[pane, cell].cos()
            total[pane] += profiles[pane, cell, (across / 1.5).long() % 64].view(1, _DRAWN, _DRAWN)
    return total
