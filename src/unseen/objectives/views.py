"""Two random views of each example, whatever its inputs are: what contrastive objectives compare."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unseen.adaptation.augmentations import augment_images
from unseen.objectives.continuous_inputs import STRUCTURE
from unseen.shifts.batch import Inputs


def two_views(
    x: Inputs, generator: torch.Generator, *, crop: float = 0.5, flip: bool = True, corruption: float = 0.3
) -> Inputs:
    """Inputs (B, ...) to (B, 2, ...), two random views of each.

    images (B, C, H, W)
        a random part of at least `crop` of the area, mirrored or not (`flip`), and the geometry, colours, blur and
        noise of `augment_images`
    other floating-point inputs (vectors, sequences, nodes of graphs)
        a share `corruption` of the values is replaced by those of random examples of the batch at the same place
        (SCARF, Bahri et al. 2022, arXiv 2106.15147)
    the rest (masks, token ids) stays: views of text differ by the network's dropout alone (SimCSE, Gao et al. 2021)
    """
    if isinstance(x, dict):
        options: dict[str, Any] = {"crop": crop, "flip": flip, "corruption": corruption}
        views: dict[str, Any] = {
            name: _pair(value, value) if name in STRUCTURE else two_views(value, generator, **options)
            for name, value in x.items()
        }
        return views

    def view() -> Tensor:
        if not x.is_floating_point():
            return x
        if x.dim() == 4:
            return augment_images(random_part(x, crop, generator), generator, flip=flip)
        return corrupted(x, corruption, generator)

    return _pair(view(), view())


def _pair(one: Inputs, other: Inputs) -> Inputs:
    if isinstance(one, dict):
        return {name: _pair(value, other[name]) for name, value in one.items()}  # type: ignore[index,misc]
    return torch.stack([one, other], 1)  # type: ignore[list-item]


def random_part(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """A random rectangle of each image (B, C, H, W), scaled to the whole: at least `smallest` of its area, with
    sides whose ratio is changed by up to 4/3."""
    area, ratio, right, down = torch.rand(4, len(images), generator=generator)
    area = smallest + (1 - smallest) * area
    ratio = torch.exp((2 * ratio - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    nothing = torch.zeros_like(area)
    rows = [
        torch.stack([width, nothing, (2 * right - 1) * (1 - width)], 1),
        torch.stack([nothing, height, (2 * down - 1) * (1 - height)], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def corrupted(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, ...) with a share of the values replaced by that of a random example of the batch at the same place."""
    replaced = torch.rand(values.shape, generator=generator) < share
    rows = torch.randint(len(values), values.shape, generator=generator)
    return torch.where(replaced.to(values.device), values.gather(0, rows.to(values.device)), values)
