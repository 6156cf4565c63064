"""Frosted window panes, drawn procedurally: needles of ice in random directions over a fractal cloud."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from scipy import ndimage
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
    pattern = F.interpolate(_drawing(), size=(2 * side, 2 * side), mode="bilinear", antialias=True)
    colours = torch.tensor([colour for colour, _ in _PANES])[:, :, None, None]
    contrasts = torch.tensor([contrast for _, contrast in _PANES])[:, None, None, None]
    return (colours + contrasts * _standardised(pattern)).clamp(0, 1)


@lru_cache(maxsize=1)
def _drawing() -> Tensor:
    """(5, 1, 512, 512): the panes without colour. Takes half a second, once in a process."""
    stream = RandomStream(seed=0, ids=range(len(_PANES)))
    return 0.6 * _standardised(_needles(stream)) + 0.4 * _standardised(_cloud(stream))


def _standardised(pattern: Tensor) -> Tensor:
    return (pattern - pattern.mean((2, 3), keepdim=True)) / pattern.std((2, 3), keepdim=True)


def _cloud(stream: RandomStream) -> Tensor:
    """Sum of noise at doubling frequencies and halving strengths."""
    octaves = [
        F.interpolate(stream.normal(1, cells, cells), size=(_DRAWN, _DRAWN), mode="bicubic") * 4 / cells
        for cells in (4, 8, 16, 32, 64, 128)
    ]
    return torch.stack(octaves).sum(0)


def _needles(stream: RandomStream, crystals: int = 400, layers: int = 2) -> Tensor:
    """Voronoi cells, each filled with streaks along a direction of its own; two layers of them."""
    y, x = torch.meshgrid(torch.arange(_DRAWN), torch.arange(_DRAWN), indexing="ij")
    total = torch.zeros(len(stream.ids), 1, _DRAWN, _DRAWN)
    for _ in range(layers):
        places = stream.integers(0, _DRAWN, crystals, 2)
        angles = stream.uniform(crystals, high=torch.pi)
        profiles = stream.normal(crystals, 64)  # brightness across the streaks of a cell
        for pane in range(len(total)):
            crystal_at = torch.zeros(_DRAWN, _DRAWN, dtype=torch.int64)
            crystal_at[tuple(places[pane].T)] = torch.arange(crystals)
            free = torch.ones(_DRAWN, _DRAWN, dtype=torch.bool)
            free[tuple(places[pane].T)] = False
            nearest = ndimage.distance_transform_edt(free, return_distances=False, return_indices=True)
            row, column = torch.from_numpy(nearest).long()
            cell = crystal_at[row, column]
            across = (x - column) * angles[pane, cell].sin() - (y - row) * angles[pane, cell].cos()
            total[pane] += profiles[pane, cell, (across / 1.5).floor().long() % 64]
    return total
